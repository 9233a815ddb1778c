"""Backbones, heads, adapters and the LightningModules around them. Read module first, then backbones."""
