"""Costs of a run before it starts: messages, memory, disk, time. Nothing is trained, except in a short trial on request.

Read plan.py first, then traffic.py.
"""
