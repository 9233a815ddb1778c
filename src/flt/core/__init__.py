"""Helpers for general purposes, such as exceptions, writing of files, a cache on disk, and silencing of libraries.

Read errors.py first, because every other package raises the exceptions in errors.py. Then read files.py.
"""
