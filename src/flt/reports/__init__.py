"""Reading of finished runs: comparison and reports."""
