"""Which components of its LoRA layers a job holds and which of these it trains. Read top first."""
