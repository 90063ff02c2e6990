"""Train image classifiers on quality-reduced images and ask how little information they need."""

__version__ = "0.1.0"
