"""Engines: where jobs are trained, and how many at once."""
