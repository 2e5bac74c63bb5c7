"""A second, plain decoder of every v3 format, written from docs/ alone.

It exists to disagree with the Rust core: it shares no code with it, favours the order of
the document over speed, and checks every range that the document states.
"""
