"""Selection of the rank-1 components that a job holds (has in its model), and of the held ones that it trains.

Read top.py first.
"""
