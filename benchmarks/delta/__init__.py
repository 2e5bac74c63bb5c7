"""What `bench_delta.py` is made of: the data, the contenders, the measuring."""
