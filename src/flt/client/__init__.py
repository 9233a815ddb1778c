"""Local training: installs a payload, trains one job with a Lightning Trainer, and collects its update.

Read trainer.py first (the resident module and its fits), then fit.py (one fit as its callbacks see it).
"""
