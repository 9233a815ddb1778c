"""Pictures for TensorBoard. Read pictures first."""
