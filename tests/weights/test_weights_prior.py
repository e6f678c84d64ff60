"""A prior from a file: read as it was trained, or refused in one line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_restore.diffusion import Guidance, SamplerOptions, sample
from lit_restore.errors import UserError
from lit_restore.networks import DiT, Network, UNet
from lit_restore.training import FlowGeneration
from lit_restore.weights import load_prior, prior, save_exported
from lit_restore.weights.checkpoint import Checkpoint, step_folder, write_checkpoint
from lit_restore.weights.exported import describe

TINY = {"channels": 3, "size": 4, "width": 16, "depth": 1, "heads": 1, "classes": 2}


def network(**changes: Any) -> DiT:
    torch.manual_seed(0)
    net = DiT(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def exported(path: Path, net: Network, model: Any = None, **info: Any) -> Path:
    info = {"task": "generation", "profile": "ema", "config": {"model": model}, **info}
    save_exported(path, net, info=info)
    return path


def test_the_recorded_interpolant_and_prediction_are_used(tmp_path: Path) -> None:
    net = network()
    model = {"interpolant": "gvp", "prediction": "data", "label_dropout": 0.1}
    path = exported(tmp_path / "n.safetensors", net, model)
    found, loaded = load_prior(path, guidance=Guidance(scale=2.0))
    assert found.interpolant.name == "gvp"
    assert (found.prediction, found.null_label) == ("data", 2)
    assert loaded.info["profile"] == "ema"
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([0.3, 0.6])
    y = torch.tensor([0, 1])
    expected = net(x, t) + 2 * (net(x, t, y) - net(x, t))
    assert torch.allclose(found.data(x, t, y), expected, atol=1e-5)


def test_what_is_not_recorded_is_what_the_training_takes_by_default(tmp_path: Path) -> None:
    signature = inspect.signature(FlowGeneration.__init__).parameters
    assert signature["interpolant"].default == prior.INTERPOLANT
    assert signature["prediction"].default == prior.PREDICTION
    assert FlowGeneration.task == prior.TASK
    for number, model in enumerate([None, {}, {"interpolant": None}]):
        found, _ = load_prior(exported(tmp_path / f"{number}.safetensors", network(), model))
        assert (found.interpolant.name, found.prediction) == ("linear", "velocity")
    save_exported(tmp_path / "bare.safetensors", network(), info={})
    assert load_prior(tmp_path / "bare.safetensors")[0].prediction == "velocity"


def test_a_run_gives_its_newest_checkpoint_and_any_profile(tmp_path: Path) -> None:
    net = network()
    (tmp_path / "checkpoints").mkdir()
    for seen in (8, 16):
        average = {name: tensor + seen for name, tensor in net.state_dict().items()}
        state = {
            "task": "generation",
            "samples_seen": seen,
            "network": describe(net),
            "profiles": ["ema"],
            "config": {"model": {"interpolant": "vp"}},
        }
        write_checkpoint(
            step_folder(tmp_path / "checkpoints", seen),
            Checkpoint(net.state_dict(), {"ema": average}, {}, state),
        )
    averaged, loaded = load_prior(tmp_path)
    raw, _ = load_prior(tmp_path, "raw")
    assert averaged.interpolant.name == raw.interpolant.name == "vp"
    assert loaded.source.name == "step-000000000016"
    bias = net.state_dict()["pos_embed"]
    assert torch.equal(averaged.net.state_dict()["pos_embed"], bias + 16)  # type: ignore[attr-defined]
    assert torch.equal(raw.net.state_dict()["pos_embed"], bias)  # type: ignore[attr-defined]
    result = sample(raw, torch.randn(1, 3, 4, 4), options=SamplerOptions(solver="euler", nfe=2))
    assert result.samples.isfinite().all()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another task": ({"task": "denoiser"}, "was trained for denoiser, not for generation; use `l"),
    "an odd task": ({"task": "fusion\n"}, "was trained for fusion\\n, not for generation"),
    "an unknown path": (
        {"config": {"model": {"interpolant": "spline"}}}, "model.interpolant: 'spline' is not one",
    ),
    "an unknown prediction": (
        {"config": {"model": {"prediction": "luck"}}}, "model.prediction: 'luck' is not one of vel",
    ),
    "no name": ({"config": {"model": {"interpolant": [1]}}}, "model.interpolant: is damaged: a n"),
    "no configuration": ({"config": {"model": "all"}}, "its configuration is damaged"),
    "no tree": ({"config": 3}, "its configuration is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_other_files_are_one_line(case: str, tmp_path: Path) -> None:
    info, message = WRONG[case]
    path = exported(tmp_path / "n.safetensors", network(), **info)
    with pytest.raises(UserError) as error:
        load_prior(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_denoisers_network_is_no_prior(tmp_path: Path) -> None:
    path = exported(tmp_path / "n.safetensors", UNet(widths=[4], depths=[1]))
    with pytest.raises(UserError, match="holds a UNet, not one of DiMSUM, DiT"):
        load_prior(path)


def test_guidance_needs_classes_and_a_training_without_labels(tmp_path: Path) -> None:
    plain = exported(tmp_path / "p.safetensors", network(classes=0))
    with pytest.raises(UserError, match="has no classes, so there is nothing to guide"):
        load_prior(plain, guidance=Guidance())
    always = exported(tmp_path / "a.safetensors", network(), {"label_dropout": 0})
    with pytest.raises(UserError, match="was trained with label_dropout 0"):
        load_prior(always, guidance=Guidance())
    assert load_prior(plain)[0].null_label is None


def test_loading_weights_needs_no_lightning() -> None:
    code = "import lit_restore.weights, lit_restore.sampling, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    heavy = {"lightning", "wandb", "jsonargparse", "diffusers", "torchdiffeq"}
    assert not heavy & set(loaded.stdout.split())
