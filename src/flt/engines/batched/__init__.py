"""The batched engine: trains several jobs at once through one frozen backbone.

Read engine.py first, then adapters.py (the stacked adapters) and module.py (one Lightning fit of several jobs).
"""
