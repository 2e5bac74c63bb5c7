"""Small messages that look alike: 500 to train a dictionary on, and 100 that it has not seen."""

import json

MESSAGES = [
    json.dumps(
        {
            "timestamp": f"2024-03-{i % 28 + 1:02}T10:{i % 60:02}:00Z",
            "region": f"eu-west-{i % 3}",
            "user": f"u{i * 7919 % 1000:05}",
            "throughput_mbps": i * 31 % 900,
        }
    ).encode()
    for i in range(600)
]
