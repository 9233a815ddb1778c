"""Callbacks that observe a federation: they evaluate, count, log and write checkpoints, and change no model.

The only exception is fault_injection.py, which changes updates on purpose. Read evaluate.py first, then checkpoint.py.
"""
