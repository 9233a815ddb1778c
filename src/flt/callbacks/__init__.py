"""Callbacks that observe a federation. They evaluate models, count, log and write checkpoints, but change no model.

The only exception is fault_injection.py, which changes updates on purpose. Read evaluate.py first, then checkpoint.py.
"""
