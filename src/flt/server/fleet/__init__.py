"""Simulated devices of the clients: how fast they compute and send, how much memory they have, and when they are there.

Nothing here changes what a client trains. The devices decide which clients can be drawn, which updates come too late,
and what the simulated clock says. Start with clock.py.
"""
