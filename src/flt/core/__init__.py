"""General helpers that contain no federated learning: exceptions, files, a cache on disk, silencing of libraries.

Read errors.py first, because every other package raises its exceptions. Then read files.py.
"""
