"""Networks: plain PyTorch modules."""
