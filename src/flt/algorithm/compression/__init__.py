"""Compression of messages: components are quantised under a budget of bytes per client. Read methods.py first."""
