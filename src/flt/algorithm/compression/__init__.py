"""Compression of messages: rank-1 components are quantised so that each client stays within a budget of bytes.

Read methods.py first.
"""
