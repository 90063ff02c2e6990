"""What a reduced image is, in numpy: qualities, levels, neighbours, windows, and its entropy in PNG bytes."""
