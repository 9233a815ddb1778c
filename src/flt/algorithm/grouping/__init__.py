"""Groupings, which divide the updates of a round into groups; each group is averaged separately.

Read base.py first, then kmeans.py.
"""
