"""Which jobs are averaged with each other. Read base first, then kmeans."""
