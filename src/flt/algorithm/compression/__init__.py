"""The precision of what travels. Read methods first."""
