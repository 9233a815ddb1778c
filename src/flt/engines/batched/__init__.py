"""The batched engine: it trains several jobs at once, with one forward pass through one frozen backbone.

Read engine.py first. Then read adapters.py, which stacks the adapters of several jobs, and module.py, which trains
several jobs in one Lightning fit.
"""
