"""Callbacks that observe a federation: they evaluate, count, log and write checkpoints.

They change no model, except for fault_injection.py, which changes updates on purpose. Read evaluate.py first, then
checkpoint.py.
"""
