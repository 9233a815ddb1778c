"""Local training: installs a payload, trains one job with a Lightning Trainer, and collects the job's update.

Read trainer.py first (trains jobs on the resident module), then fit.py (the inputs and results of one fit).
"""

from flt.data.clients import ClientSpec as ClientSpec  # earlier versions had the two classes here
from flt.data.clients import JobData as JobData
