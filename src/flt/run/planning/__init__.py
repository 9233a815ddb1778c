"""Costs of a run before it starts: messages, memory, disk, time. Nothing is trained but in a short trial on request.

Read plan.py first, then traffic.py.
"""
