"""Errors, files, the disk cache and quiet libraries: nothing of federated learning. Read errors first."""
