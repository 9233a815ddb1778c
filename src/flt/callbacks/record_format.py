"""Names and numbers that the writer and the readers of a run's record share. Nothing here imports torch."""

from __future__ import annotations

RECORD, FORMAT = "record.jsonl", 1
"""Name of the file in a run's folder, and number of its format."""
LARGEST = 2**26
"""Largest size of a record that is read, in bytes."""
BY_JOB = "by_job"
"""Key of the components that each job trained."""
QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
"""Quantiles over the jobs that are recorded where there are too many jobs for a value of each."""
