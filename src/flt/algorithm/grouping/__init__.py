"""Groupings, which decide the updates that are averaged with each other. Read base.py first, then kmeans.py."""
