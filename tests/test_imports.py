"""What importing a room brings along; and what the dependencies must not bring."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(result.stdout.split())


def test_the_package_and_its_signal_handlers_come_before_the_heavy_imports() -> None:
    # A signal in the seconds that torch takes to import must already be kept.
    found = loaded_by("import lit_restore; from lit_restore.io import signals, status, fs, yaml")
    assert not found & {"torch", "lightning", "numpy", "wandb"}


@pytest.mark.parametrize("room", ["networks", "ops", "diffusion"])
def test_the_plain_rooms_are_a_pytorch_library(room: str) -> None:
    found = loaded_by(f"import lit_restore.{room}")
    assert not found & {"lightning", "wandb", "jsonargparse", "webdataset"}


def test_train_py_takes_the_signals_first() -> None:
    lines = (ROOT / "train.py").read_text().splitlines()
    install = next(k for k, line in enumerate(lines) if "signals.install()" in line)
    imports = [k for k, line in enumerate(lines) if line.lstrip().startswith(("import ", "from "))]
    heavy = [k for k in imports if "lit_restore.cli" in lines[k]]
    assert install < min(heavy)


def test_no_installed_package_holds_what_the_malicious_lightning_releases_held() -> None:
    # GHSA-w37p-236h-pfx3: 2.6.2 and 2.6.3 carried a `_runtime` folder that ran on import.
    files = importlib.metadata.files("lightning") or []
    assert not [f for f in files if "_runtime/" in str(f)]
    assert importlib.metadata.version("lightning") not in ("2.6.2", "2.6.3")


def test_nothing_is_pinned_to_a_registry_or_locked() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert "exclude-newer" in text
    assert "index-url" not in text
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert "uv.lock" not in tracked
