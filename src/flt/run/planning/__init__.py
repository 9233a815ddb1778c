"""What a run would cost: its messages, memory, disk and time. Nothing is trained, except in a short trial on request.

Read plan.py first, then traffic.py.
"""
