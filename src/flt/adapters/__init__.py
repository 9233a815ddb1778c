"""Adapters: what is attached to the frozen backbone."""
