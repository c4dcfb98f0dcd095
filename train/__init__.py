"""Fine-tuning on pairs."""
