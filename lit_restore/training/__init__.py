"""The LightningModules: what is trained, with which loss, and no more."""

from lit_restore.training.base import TrainingModule
from lit_restore.training.burst import BurstRegression
from lit_restore.training.denoising import DenoiserPretraining
from lit_restore.training.fusion import FusionTraining
from lit_restore.training.generation import FlowGeneration
from lit_restore.training.regression import RestorationRegression

_MODULES: tuple[type[TrainingModule], ...] = (
    BurstRegression,
    DenoiserPretraining,
    FlowGeneration,
    FusionTraining,
    RestorationRegression,
)
TASKS: dict[str, type[TrainingModule]] = {module.task: module for module in _MODULES}
"""A config's `task:` → the module that trains it."""

__all__ = [
    "TASKS",
    "BurstRegression",
    "DenoiserPretraining",
    "FlowGeneration",
    "FusionTraining",
    "RestorationRegression",
    "TrainingModule",
]
