"""The compression selector: its measured table, and what is learned from it."""
