"""Messages between server and client, the states that both sides keep, and the role of each tensor of a model.

Read messages.py first, then state.py and layout.py.
"""
