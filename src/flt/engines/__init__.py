"""Where jobs are trained, and how many at once. Read serial first."""
