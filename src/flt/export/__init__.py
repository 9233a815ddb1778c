"""Results written, and loaded again. Read write first, then load."""
