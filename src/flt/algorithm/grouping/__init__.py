"""Groupings, which divide a round's updates into groups. Each group is averaged separately.

Read base.py first, then kmeans.py.
"""
