"""Predictions of a network, the rows that hold them, and the tests that compare them."""
