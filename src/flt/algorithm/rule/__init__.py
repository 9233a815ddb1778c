"""Aggregation rules, which combine the updates of one group into its new weights. Read base.py first, then mean.py."""
