"""Measures of samples: pure functions on features and points."""
