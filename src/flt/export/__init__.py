"""Export of a federation's final models to folders, and loading of such folders.

Read write.py first, then load.py.
"""
