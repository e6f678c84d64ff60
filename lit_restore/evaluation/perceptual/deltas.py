"""How far an output's score without a reference is from its target's: TOPIQ_D and NIQE_D.

DP-IR's tables have TOPIQ_D. TOPIQ_NR itself (Chen et al. 2023, arXiv 2308.03060) is never part of
this package: code and weights are for non-commercial use, and come from a user's own `pyiqa`. Where
that is not installed NIQE_D, another number by another name, needs none of it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch

from lit_restore.evaluation.metrics import Values
from lit_restore.evaluation.perceptual.pixels import to_unit
from lit_restore.evaluation.perceptual.weights import MissingWeights, Requirement, WeightFolders

TOPIQ = Requirement(
    file="cfanet_nr_koniq_res50-9a73138b.pth",
    sha256="9a73138b",
    bytes=None,
    licence="CC BY-NC-SA 4.0, non-commercial",
    how="from the releases of chaofengc/IQA-PyTorch",
)


def topiq_delta(score: Callable[[Values], float], output: Values, target: Values) -> float:
    """|score(output) - score(target)|: DP-IR's TOPIQ_D, of any score of one picture.

    Args:
        score: of a picture (H, W, 1 or 3) in [0, 255].
        output: the restored picture.
        target: what it should be.

    Raises:
        ValueError: as `score`.
    """
    return abs(score(output) - score(target))


def open_topiq(folders: WeightFolders) -> Callable[[Values], float]:
    """TOPIQ_NR by the pyiqa that is installed, in float32 on the CPU.

    Raises:
        MissingWeights: pyiqa is not installed, or its weights are nowhere.
        UserError: the weights are another's.
    """
    if importlib.util.find_spec("pyiqa") is None:
        raise MissingWeights(
            "needs pyiqa, which is for non-commercial use and never installed with this package; "
            "niqe_d needs none of it"
        )
    _, path = folders.find(TOPIQ)
    pyiqa = importlib.import_module("pyiqa")
    # With a path and without the classifier's own weights, pyiqa fetches nothing.
    metric = pyiqa.create_metric(
        "topiq_nr",
        device=torch.device("cpu"),
        pretrained_model_path=str(path),
        backbone_pretrain=False,
    )

    @torch.no_grad()
    def score(image: Values) -> float:
        return float(metric(to_unit(image)))

    return score
