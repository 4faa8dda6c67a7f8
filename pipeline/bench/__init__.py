"""Measurements of the parts of training, in runs that can be repeated."""
