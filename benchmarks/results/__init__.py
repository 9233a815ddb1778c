"""Results tables: runs the cells that are missing and writes docs/results/ (``make results``)."""
