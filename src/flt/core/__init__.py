"""Helpers that have nothing to do with federated learning: errors, files, the disk cache, silencing of libraries.

Read errors.py first: every other package raises its exceptions. Then read files.py.
"""
