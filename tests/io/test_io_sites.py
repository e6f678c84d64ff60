"""Only `lit_restore/io` touches files, and even there no loader runs without its limits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lit_restore"
IO = PACKAGE / "io"

FUNCTIONS = frozenset(
    {
        "open",
        "io.open",
        "os.fdopen",
        "os.link",
        "os.makedirs",
        "os.mkdir",
        "os.open",
        "os.pread",
        "os.remove",
        "os.rename",
        "os.replace",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
        "os.unlink",
        "PIL.Image.open",
        "cv2.imread",
        "cv2.imwrite",
        "numpy.fromfile",
        "numpy.load",
        "numpy.loadtxt",
        "numpy.memmap",
        "numpy.save",
        "numpy.savetxt",
        "numpy.savez",
        "numpy.savez_compressed",
        "skimage.io.imread",
        "skimage.io.imsave",
        "tarfile.open",
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "torch.jit.load",
        "torch.jit.save",
        "torchvision.io.read_image",
        "torchvision.io.write_png",
        "webdataset.WebDataset",
        "webdataset.gopen",
        "zipfile.ZipFile",
    }
)
MODULES = (
    "dill",
    "pickle",
    "requests",
    "safetensors",
    "shutil",
    "tempfile",
    "torch.distributed.checkpoint",
    "urllib.request",
)
METHODS = frozenset(
    {
        "hardlink_to",
        "load_from_checkpoint",
        "mkdir",
        "open",
        "read_bytes",
        "read_text",
        "rename",
        "rmdir",
        "symlink_to",
        "touch",
        "unlink",
        "write_bytes",
        "write_text",
    }
)
REQUIRED = {
    "PIL.Image.open": "formats",
    "numpy.load": "allow_pickle",
    "torch.load": "weights_only",
}
"""Arguments without which a loader does more than it should, in any file."""

NATIVE = ("?folder.mkdir", "?path.read_bytes", "os.replace", "?draft.unlink", "?.read_text")
NVRTC = ("?path.read_bytes", "os.open", "open", "os.replace", "?draft.unlink")
EXCEPTIONS = {
    ("lit_restore/cli/entry.py", "os.open"): "the null device, when stdout's reader has gone",
    **{
        ("lit_restore/ops/native.py", what): "compiled code kept: `ops` may not import `io`"
        for what in NATIVE
    },
    **{
        ("lit_restore/ops/nvrtc.py", what): "compiled code kept: `ops` may not import `io`"
        for what in NVRTC
    },
    ("lit_restore/ops/selective_scan/tuned.py", "?.read_text"): "a file of the package's own",
}


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: ``np`` → ``numpy``, ``load`` → ``torch.load``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or first] = first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """A called thing's full name; ``?.method`` where what it is called on is a value."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id if node.id == "open" else f"?{node.id}")
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return "?"


def violations(source: str, *, inside_io: bool = False) -> Iterator[tuple[int, str]]:
    """(line, name) of every call that belongs into `io`, or lacks what it needs there."""
    tree = ast.parse(source)
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and not inside_io:
            name = dotted(node, names)  # also as an argument: map(os.unlink, …)
            if name in FUNCTIONS and name != "open":
                yield node.lineno, name
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        given = {keyword.arg for keyword in node.keywords}
        if name in REQUIRED and REQUIRED[name] not in given:
            yield node.lineno, f"{name} without {REQUIRED[name]}="
        if inside_io or name.startswith("lit_restore.io."):
            continue
        method = name.startswith("?") and name.rpartition(".")[2] in METHODS and "." in name
        of_path = name.startswith("pathlib.") and name.rpartition(".")[2] in METHODS
        module = any(name.startswith(f"{m}.") for m in MODULES)
        if name == "open" or method or of_path or module:
            yield node.lineno, name


def sources() -> list[Path]:
    doors = [ROOT / name for name in ("train.py", "evaluate.py")]
    return sorted(PACKAGE.rglob("*.py")) + [path for path in doors if path.exists()]


def test_files_are_touched_in_io_only() -> None:
    found = []
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        for line, what in sorted(set(violations(path.read_text(), inside_io=IO in path.parents))):
            if (name, what) not in EXCEPTIONS:
                found.append(f"{name}:{line}: {what}")
    assert not found, "\n".join(found)


def test_exceptions_are_still_needed() -> None:
    for name, what in EXCEPTIONS:
        path = ROOT / name
        assert path.exists(), name
        assert what in {found for _, found in violations(path.read_text())}, (name, what)


FORBIDDEN = (
    "open('x')",
    "with open('x') as f: pass",
    "import io\nio.open('x')",
    "import os\nos.replace('a', 'b')",
    "from os import unlink as gone\ngone('a')",
    "import os\nlist(map(os.unlink, ['a']))",
    "from pathlib import Path\nPath('x').read_text()",
    "from pathlib import Path\np = Path('x')\np.mkdir(parents=True)",
    "def f(path): return path.open('rb')",
    "import numpy as np\nnp.load('x', allow_pickle=False)",
    "import torch\ntorch.save({}, 'x')",
    "from torch import load\nload('x', weights_only=True)",
    "from PIL import Image\nImage.open('x', formats=('PNG',))",
    "import PIL.Image\nPIL.Image.open('x', formats=('PNG',))",
    "import shutil\nshutil.rmtree('x')",
    "from tempfile import mkdtemp\nmkdtemp()",
    "from safetensors.torch import load_file\nload_file('x')",
    "import safetensors.torch as st\nst.save_file({}, 'x')",
    "import torch.distributed.checkpoint as dcp\ndcp.load({})",
    "import pickle\npickle.loads(b'')",
    "Module.load_from_checkpoint('x')",
    "import webdataset as wds\nwds.WebDataset('pipe:cat x')",
    "import tarfile\ntarfile.open('x')",
    "from urllib.request import urlopen\nurlopen('http://x')",
)
FINE = (
    "from lit_restore.io import fs\nfs.read_bytes('x'); fs.rename('a', 'b'); fs.open_read('x')",
    "from lit_restore.io.fs import write_atomic\nwrite_atomic('x', b'')",
    "from lit_restore.io import images\nimages.write_png('x', y)",
    "'a'.replace('a', 'b')",
    "import os\nos.environ.get('x'); os.path.join('a', 'b')",
    "from pathlib import Path\nPath('x').name; Path('x').is_dir()",
    "import torch\ntorch.zeros(1)",
    "from PIL import Image\nImage.fromarray(x)",
    "import json\njson.loads('{}')",
)


@pytest.mark.parametrize("source", FORBIDDEN)
def test_lint_sees_the_call(source: str) -> None:
    assert list(violations(source))


@pytest.mark.parametrize("source", FINE)
def test_lint_leaves_the_rest(source: str) -> None:
    assert not list(violations(source))


@pytest.mark.parametrize("source", FORBIDDEN)
def test_everything_is_allowed_inside_io(source: str) -> None:
    assert not list(violations(source, inside_io=True))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')",
        "from PIL import Image\nImage.open('x')",
        "import numpy as np\nnp.load('x')",
    ],
)
def test_loaders_need_their_limits_inside_io_too(source: str) -> None:
    assert list(violations(source, inside_io=True))
