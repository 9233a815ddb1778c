"""Ranks: which pairs a job holds and trains, and what each of them is worth."""
