"""Grouping: who is averaged with whom."""
