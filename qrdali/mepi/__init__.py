"""Minimal-entropy positive images: the search, the set on disk, and the journal from which it resumes."""
