"""Makes datasets of pairs: captions, prompts, grids, pairs, judgements, descriptions, packing."""
