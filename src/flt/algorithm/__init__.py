"""The parts of a recipe, a file or folder for each group of conf/. Read recipe first, then base."""
