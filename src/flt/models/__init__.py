"""The models that clients train: pre-trained backbones, heads, adapters, and the LightningModules around them.

Read module.py first, then backbones.py (loads a model), layer_names.py (finds the head and the layers to adapt) and
adapters/.
"""
