"""Pictures for TensorBoard. Read pictures.py first, then cluster_pictures.py; both draw with heatmap.py."""
