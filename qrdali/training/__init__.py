"""The training loop and what belongs to it: steps, stages of levels, probes, checkpoints of the state,
quarantine."""
