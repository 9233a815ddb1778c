"""Messages between server and client, the states that both keep between rounds, and the layout of a model's tensors.

Read messages.py first, then state.py, and then layout.py.
"""
