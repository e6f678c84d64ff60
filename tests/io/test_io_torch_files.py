"""Foreign weights: plain tensors or one line; nothing in the file is ever run."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_restore.errors import UserError
from lit_restore.io.torch_files import load_foreign_weights

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2).bfloat16()}
SHARED = Path(__file__).parents[2].parent / "shared/data/weights.tar"


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def rezipped(archive: bytes, compression: int = zipfile.ZIP_STORED, **renamed: str) -> bytes:
    """The same zip written anew; `renamed` maps a member's stem ("data" for data.pkl)."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for name in old.namelist():
            new.writestr(renamed.get(Path(name).stem, name), old.read(name))
    return buffer.getvalue()


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def refusal(path: Path, data: bytes, **options: object) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_foreign_weights(path, **options)
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(path))
    return caught.value.message


def loads(path: Path, data: bytes, **options: object) -> bool:
    path.write_bytes(data)
    found = load_foreign_weights(path, **options)
    return found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


def test_state_dict_loads_plain_or_under_a_known_key(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    assert loads(path, saved(STATE))
    for key in ("params", "params_ema", "state_dict", "model"):
        assert loads(path, saved({key: STATE, "epoch": 3}))


def test_several_sets_of_weights_need_a_name(tmp_path: Path) -> None:
    path, data = tmp_path / "w.pth", saved({"params": STATE, "params_ema": STATE})
    assert refusal(path, data) == "holds several sets of weights, params, params_ema; name one"
    assert loads(path, data, key="params_ema")
    assert refusal(path, data, key="net") == "holds no weights under net"


def test_content_without_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    assert refusal(path, saved({"net": STATE})) == "holds no state dict; its keys are net"
    assert refusal(path, saved({})) == "holds no state dict; its keys are none"
    assert refusal(path, saved([1])) == "holds a list, not a state dict"
    mixed = saved({**STATE, "epoch": 3})
    assert refusal(path, mixed) == "holds no state dict; its keys are head.weight, head.bias, epoch"


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, canary = tmp_path / "w.pth", tmp_path / "canary"
    data = saved({"a": Payload(canary)})
    line = "needs posix.system, refused; --trust_checkpoint would run it"
    assert refusal(path, data) == line
    legacy = saved({"a": Payload(canary)}, legacy=True)
    assert refusal(path, legacy, legacy=True) == line
    assert not canary.exists()


def test_trust_runs_it_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The negative control of the refusal above."""
    path, canary = tmp_path / "w.pth", tmp_path / "canary"
    assert "state dict" in refusal(path, saved({"a": Payload(canary)}), trust=True)
    assert canary.exists()
    assert "may run code" in capsys.readouterr().err


def test_old_format_needs_a_word(tmp_path: Path) -> None:
    path, data = tmp_path / "w.pth", saved(STATE, legacy=True)
    assert refusal(path, data) == "old pickle format, refused; needs --trust_checkpoint"
    assert refusal(path, pickle.dumps(1)) == "old pickle format, refused; needs --trust_checkpoint"
    assert loads(path, data, legacy=True)
    assert loads(path, data, trust=True)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
    assert refusal(tmp_path / "w.pt", buffer.getvalue()) == "TorchScript, not a state dict"


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    data = rezipped(saved({"a": torch.zeros(3_000_000)}), zipfile.ZIP_DEFLATED)
    message = refusal(tmp_path / "w.pth", data)
    assert message.startswith("compressed members (")
    assert message.endswith("KB to 12 MB), refused")


def test_the_same_members_stored_load(tmp_path: Path) -> None:
    assert loads(tmp_path / "w.pth", rezipped(saved(STATE)))


def test_flipped_bit_is_named_and_torch_alone_would_not_see_it(tmp_path: Path) -> None:
    path, data = tmp_path / "w.pth", bytearray(saved(STATE))
    at = data.index(STATE["head.weight"].numpy().tobytes())
    data[at + 5] ^= 1
    assert refusal(path, bytes(data)) == "data/0 fails its CRC"
    silent = torch.load(path, weights_only=True)  # the negative control
    assert not torch.equal(silent["head.weight"], STATE["head.weight"])


def test_cut_file_is_refused_at_every_length(tmp_path: Path) -> None:
    data = saved(STATE)
    for length in range(1, len(data), 97):
        assert refusal(tmp_path / "w.pth", data[:length]) == "truncated, or not a checkpoint"
    assert refusal(tmp_path / "w.pth", b"") == "empty file"
    assert refusal(tmp_path / "w.pth", b"<html>") == "truncated, or not a checkpoint"


def test_names_that_climb_out_and_second_pickles_are_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "w.pth", saved(STATE)
    climbing = rezipped(data, byteorder="archive/../../x")
    assert refusal(path, climbing) == 'member "archive/../../x" refused (path)'
    second = rezipped(data, byteorder="archive/x/data.pkl")
    assert refusal(path, second) == "holds 2 data.pkl, expected one"
    assert refusal(path, rezipped(data, data="archive/x")) == "holds 0 data.pkl, expected one"


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_expanded_tensor_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    bomb = {"a": torch.zeros(1).expand(1 << 40)}
    assert refusal(tmp_path / "w.pth", saved(bomb)) == "a is larger than its data, refused"
    sparse = {"a": torch.eye(3).to_sparse()}
    assert refusal(tmp_path / "w.pth", saved(sparse)) == "a is not a dense tensor, refused"


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_loads(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "w.npz"
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.arange(3, dtype=">i2"),
        "c": np.ones((), "f4"),
    }
    path.write_bytes(npz(compressed, **arrays))
    found = load_foreign_weights(path)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[k].numpy(), arrays[k]) for k in arrays)


def test_npz_that_inflates_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "w.npz", npz(True, a=np.zeros(50_000_000, np.uint8)))
    assert message == "49 KB inflates to 50 MB, refused"


def test_npz_of_objects_or_text_is_refused_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    objects = npz(a=np.array([Payload(canary)], dtype=object))
    assert "Python objects, refused" in refusal(tmp_path / "w.npz", objects)
    assert not canary.exists()
    assert refusal(tmp_path / "w.npz", npz(a=np.array(["x"]))) == "holds <U1, not numbers"


def test_npz_header_that_says_terabytes_allocates_nothing(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (1_100_000_000_000,)}
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("a.npy", buffer.getvalue() + bytes(8))
    assert "needs 4" in refusal(tmp_path / "w.npz", archive.getvalue())


def test_flipped_npz_is_refused(tmp_path: Path) -> None:
    data = bytearray(npz(a=np.arange(100.0)))
    data[400] ^= 1
    assert refusal(tmp_path / "w.npz", bytes(data)) == "damaged, or fails its CRC"


def test_member_of_a_tar_loads(tmp_path: Path) -> None:
    path = tmp_path / "w.tar"
    with tarfile.open(path, "w") as writer:
        for name, data in {"a.pth": saved(STATE), "b.npz": npz(x=np.ones(2))}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    assert load_foreign_weights(path, "a.pth").keys() == STATE.keys()
    assert load_foreign_weights(path, "b.npz").keys() == {"x"}
    with pytest.raises(UserError, match=r"holds no c\.pth"):
        load_foreign_weights(path, "c.pth")


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data/weights.tar")
@pytest.mark.parametrize(
    ("member", "count"), [("FFDNet_color.npz", 24), ("team04_rlfn.pth", 78), ("IMDN_x2.pth", 92)]
)
def test_published_weights_load(member: str, count: int) -> None:
    assert len(load_foreign_weights(SHARED, member, legacy=True)) == count
