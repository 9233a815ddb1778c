"""Several jobs at once through one frozen backbone. Read engine first."""
