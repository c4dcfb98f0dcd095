"""`dsd quickstart`: the whole of self-distillation on toy weights, with a score."""
