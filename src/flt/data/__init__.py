"""Where examples come from, how clients share them out, and how they become tensors."""
