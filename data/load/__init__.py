"""From pairs on disk to batches on a mesh."""
