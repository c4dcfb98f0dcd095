"""Making pairs: captions, grid prompts, grids, pairs, verdicts, captions of pairs, a dataset."""
