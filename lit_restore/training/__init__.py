"""The LightningModules: what is trained, with which loss, and no more."""

from lit_restore.training.base import TrainingModule
from lit_restore.training.denoising import DenoiserPretraining

TASKS: dict[str, type[TrainingModule]] = {module.task: module for module in (DenoiserPretraining,)}
"""A config's `task:` → the module that trains it."""

__all__ = ["TASKS", "DenoiserPretraining", "TrainingModule"]
