"""Observers of a federation: evaluation, checkpoints, logs. Read evaluate first."""
