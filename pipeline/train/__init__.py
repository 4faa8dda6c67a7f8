"""The training run: its composition, its loop, its checkpoints."""
