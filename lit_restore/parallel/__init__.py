"""Parallelism and compilation, applied to an untouched model from outside."""
