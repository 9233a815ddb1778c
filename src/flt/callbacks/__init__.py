"""Callbacks that observe a federation: they evaluate, count, log and write checkpoints, and change no model.

Read evaluate.py first, then checkpoint.py; fault_injection.py is the exception that changes updates on purpose.
"""
