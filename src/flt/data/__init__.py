"""Data sets, their encoding as tensors, and their division among the clients.

Read clients.py first (a client's jobs and their positions in a data set), then examples.py and partition.py.
"""
