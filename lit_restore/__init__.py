"""Train diffusion models that generate and restore images, on PyTorch Lightning."""

__version__ = "0.1.0"
