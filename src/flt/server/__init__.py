"""Code of the server: the round loop, the aggregation, the failure policy, and the store of client states.

Start with federator.py, which contains the round loop. Then read aggregation.py, which builds the payloads of a round
from the server's state, and computes the next state from the updates.
"""
