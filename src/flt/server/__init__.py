"""Server side of a federation: the round loop, the aggregation, and the handling of failed jobs and private states.

Read federator.py first (the round loop), then aggregation.py (payloads from a state, and the next state from updates).
"""
