"""Local training: installs a payload, trains one job with a Lightning Trainer, and collects the job's update.

Read trainer.py first (trains jobs on the resident module), then fit.py (the inputs and results of one fit).
"""
