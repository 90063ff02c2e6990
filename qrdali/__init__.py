"""Train image classifiers on quality-reduced images and ask how little information they need."""

from qrdali.version import __version__

__all__ = ["__version__"]
