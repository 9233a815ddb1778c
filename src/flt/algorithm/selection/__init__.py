"""Selection of the components that a job holds, and of the held ones that it trains. Read top.py first."""
