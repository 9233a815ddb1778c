"""Aggregation rules, one class each; their algebra is in pure helpers."""
