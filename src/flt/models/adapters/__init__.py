"""The adapters: small trainable parts attached to a frozen backbone (LoRA, C2A, Houlsby bottlenecks, or none).

Read lora.py first; registry.py lists the adapters by name.
"""
