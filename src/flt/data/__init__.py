"""Data sets, their encoding as tensors, and their division among the clients.

Read clients.py first (the jobs of a client and the data of each job), then examples.py and partition.py.
"""
