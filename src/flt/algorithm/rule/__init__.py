"""The aggregation of one group of updates. Read base first, then mean."""
