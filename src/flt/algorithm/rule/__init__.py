"""Aggregation rules, which combine the updates of one group into the group's new weights.

Read base.py first, then mean.py.
"""
