"""Comparing runs: what differs between them, which is better, and at what cost."""
