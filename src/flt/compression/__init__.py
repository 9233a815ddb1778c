"""The precision of what travels, under a budget of bytes per client."""
