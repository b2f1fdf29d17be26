"""One training run: its loop, optimiser, checkpoint, signals and device."""
