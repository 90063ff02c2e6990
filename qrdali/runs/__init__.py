"""What a training run leaves on disk: its settings, its folder and its checkpoints."""
