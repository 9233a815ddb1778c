"""What is attached to a frozen backbone: LoRA, C2A, bottlenecks, or nothing. Read lora first."""
