"""Server side of a federation: the round loop, the aggregation, failed jobs, and the storage of client states.

Read federator.py first: it contains the round loop. Then read aggregation.py: it builds the payloads of a round from
the server's state, and computes the next state from the updates.
"""
