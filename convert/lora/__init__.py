"""LoRA files of every dialect."""
