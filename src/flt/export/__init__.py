"""Export of a federation's models to folders, and loading of these folders. Read write.py first, then load.py."""
