"""Tensor operations: tensors in, tensors out."""
