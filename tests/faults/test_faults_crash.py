"""No power cut at any moment of a save loses what was acknowledged, or passes off garbage.

Each defence of `io.folder` has a negative control: without it, its column of the table turns red.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_simulator import Recorder, Saves, Verdict, verdict

from lit_restore.callbacks.retention import Retention
from lit_restore.callbacks.saving import Saver
from lit_restore.errors import UserError
from lit_restore.io import folder, fs
from lit_restore.weights.checkpoint import Part, step_folder
from lit_restore.weights.pieces import Piece

STEP = re.compile(r"step-\d+")
ONE = {"ema.safetensors": b"a", "network.safetensors": b"weights 1", "state.json": b"1"}
TWO = {"ema.safetensors": b"bb", "network.safetensors": b"weights two", "state.json": b"22"}
LOST, GARBAGE, BROKEN = "all_lost", "garbage", "promise_broken"
SAVES: Saves = {"one": ("step-1", ONE), "two": ("step-2", TWO)}


# Writers: each saves 2 beside 1 and then drops 1 -----------------------------------------------


def save(target: Path, content: dict[str, bytes]) -> None:
    draft = folder.Draft.begin(target)
    for name, data in content.items():
        draft.write(name, data)
    draft.publish()


def save_by_two_ranks(target: Path, content: dict[str, bytes]) -> None:
    first = folder.Draft.begin(target)
    second = folder.Draft(target, first.folder)
    names = sorted(content)
    entries = [second.write(name, content[name]) for name in names[:1]]
    entries += [first.write(name, content[name]) for name in names[1:]]
    first.publish(entries)


def save_in_place(target: Path, content: dict[str, bytes]) -> None:
    fs.make_dir(target)
    draft = folder.Draft(target, target)
    for name, data in content.items():
        draft.write(name, data)
    manifest = folder.Manifest(tuple(sorted(draft.entries, key=lambda entry: entry.name)))
    sealed = draft._seal("manifest.json", folder._manifest_text(manifest))
    draft._seal("COMPLETE", f"{sealed}  manifest.json\n")
    fs.fsync_dir(target)


def save_then_drop(recorder: Recorder, root: Path, save=save) -> None:
    recorder.promise("one")
    save(root / "step-2", TWO)
    recorder.promise("one", "two")
    recorder.promise("two")
    folder.discard(root / "step-1")


def drop_then_save(recorder: Recorder, root: Path) -> None:
    folder.discard(root / "step-1")
    save(root / "step-2", TWO)
    recorder.promise("two")


# Readers ------------------------------------------------------------------------------------------


def read(root: Path) -> list[Path]:
    """The real one."""
    good = []
    for path in folder.complete(root, STEP):
        try:
            folder.verify(path)
        except UserError:
            continue
        good.append(path)
    return good


def sweep_and_read(root: Path) -> list[Path]:
    folder.sweep(root)
    assert not [path for path in root.iterdir() if path.name.startswith(("tmp-", "trash-"))]
    return read(root)


def read_without_hashes(root: Path) -> list[Path]:
    return folder.complete(root, STEP)


def read_by_marker(root: Path) -> list[Path]:
    return [path for path in read_by_name(root) if (path / "COMPLETE").exists()]


def read_by_name(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if STEP.fullmatch(path.name)]


# --------------------------------------------------------------------------------------------------


def record(tmp_path, writer, skips=lambda operation, path: False) -> Recorder:
    root = tmp_path / "run"
    root.mkdir()
    save(root / "step-1", ONE)
    recorder = Recorder(root, skips)
    with fs.using(recorder):
        writer(recorder, root)
    return recorder


def simulate(tmp_path, writer, skips=lambda operation, path: False, reader=read) -> Verdict:
    recorder = record(tmp_path, writer, skips)
    return verdict(recorder, reader, SAVES, tmp_path / "disks")


def of_tensors(operation: str, path: Path) -> bool:
    return operation == "fsync" and path.suffix == ".safetensors"


def of_marker(operation: str, path: Path) -> bool:
    return operation == "fsync" and path.name == "COMPLETE"


def of_manifest(operation: str, path: Path) -> bool:
    return operation == "fsync" and path.name == "manifest.json"


def of_draft(operation: str, path: Path) -> bool:
    return operation == "fsync_dir" and path.name.startswith("tmp-")


def of_parent(operation: str, path: Path) -> bool:
    return operation == "fsync_dir" and path.name == "run"


@pytest.mark.parametrize("reader", [read, read_without_hashes, sweep_and_read])
def test_no_disk_after_a_crash_is_bad(tmp_path, reader):
    result = simulate(tmp_path, save_then_drop, reader=reader)
    assert result.red() == set()
    assert result.disks > 80


def test_no_disk_after_a_crash_of_a_save_by_two_ranks_is_bad(tmp_path):
    result = simulate(tmp_path, lambda r, root: save_then_drop(r, root, save_by_two_ranks))
    assert result.red() == set()


class TakingTurns:
    """Stands in for `Control`: two ranks as threads, of which one runs at a time."""

    world = 2

    def __init__(self, rank: int, shared: dict[str, Any]) -> None:
        self.rank, self.shared, self.round = rank, shared, 0

    def gather(self, part: Any) -> list[Any]:
        given, self.round = self.shared["given"], self.round + 1
        given[self.round, self.rank] = part
        self.shared["turn"][1 - self.rank].release()
        self.shared["turn"][self.rank].acquire()
        return [given[self.round, 0], given[self.round, 1]]

    def from_first(self, value: Any) -> Any:
        return self.gather(value)[0]


def save_sharded(root: Path, samples_seen: int, value: float) -> None:
    """The real save of two ranks, each with half of one tensor."""
    shared = {"given": {}, "turn": [threading.Semaphore(1), threading.Semaphore(0)]}
    errors = []

    def one(rank: int) -> None:
        shared["turn"][rank].acquire()
        saver = Saver(root, Retention(last=1, best=0, every=0), lambda path: None)
        saver.control = TakingTurns(rank, shared)
        half = Piece(torch.full((2, 3), value + rank), (2 * rank, 0), (4, 3))
        part = Part(rank, True, {"network": {"w": half}, "ema": {}, "optimizer": {}})
        state = {"samples_seen": samples_seen, "score": None}
        target = step_folder(root, samples_seen)
        errors.append(saver.save(target, part, state, verify=True).error)
        shared["turn"][1 - rank].release()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == [None, None]


@pytest.mark.parametrize(
    ("reader", "broken"), [(read, False), (sweep_and_read, False), (read, True)]
)
def test_no_disk_after_a_crash_of_a_sharded_save_and_its_retention_is_bad(
    tmp_path, monkeypatch, reader, broken
):
    """Two ranks' files, the index, the vote, then the older checkpoint is dropped."""
    names = [step_folder(tmp_path / "run", seen).name for seen in (8, 16)]
    saves = {}
    for name, seen, value in zip(names, (8, 16), (1.0, 5.0), strict=True):
        (tmp_path / name).mkdir()
        save_sharded(tmp_path / name, seen, value)
        files = {path.name: path.read_bytes() for path in (tmp_path / name / name).iterdir()}
        assert {"network-r0.safetensors", "network-r1.safetensors", "index.json"} < files.keys()
        saves[name] = (name, files)
    root = tmp_path / "run"
    root.mkdir()
    save_sharded(root, 8, 1.0)
    # Broken: the second rank does not flush its file.
    unflushed = "network-r1.safetensors" if broken else ""
    recorder = Recorder(root, lambda op, path: op == "fsync" and path.name == unflushed)
    recorder.promise(names[0])
    original = Saver._drop_surplus

    def drop(self: Saver, saved: Path) -> None:
        recorder.promise(*names)  # acknowledged before anything older goes
        recorder.promise(names[1])
        original(self, saved)

    monkeypatch.setattr(Saver, "_drop_surplus", drop)
    with fs.using(recorder):
        save_sharded(root, 16, 5.0)
    result = verdict(recorder, reader, saves, tmp_path / "disks")
    assert (result.red() != set()) == broken
    assert result.disks > 80


def test_the_recorded_save_is_in_the_order_of_the_specification(tmp_path):
    log = record(tmp_path, save_then_drop).log
    plain = [re.sub(r"-[0-9a-f]{8}\b", "", line) for line in log]
    draft = [f"{verb} tmp-step-2/{name}" for name in (*TWO, "manifest.json", "COMPLETE")
             for verb in ("create", "write", "fsync")]  # fmt: skip
    assert plain[plain.index(draft[0]) :] == [
        *draft,
        "fsync_dir tmp-step-2",
        "rename tmp-step-2",
        "fsync_dir .",
        "rename step-1",
        "fsync_dir .",
        *(f"unlink trash-step-1/{name}" for name in sorted((*ONE, "manifest.json", "COMPLETE"))),
        "rmdir trash-step-1",
    ]


def test_the_first_save_of_a_run_is_durable_with_the_folders_above_it(tmp_path):
    recorder = Recorder(tmp_path)
    with fs.using(recorder):
        save(tmp_path / "run" / "checkpoints" / "step-1", ONE)
        recorder.promise("one")
    result = verdict(
        recorder, lambda root: read(root / "run" / "checkpoints"), SAVES, tmp_path / "disks"
    )
    assert result.garbage == result.promise_broken == 0


def test_a_file_written_at_once_is_old_or_new_on_every_disk_and_new_once_acknowledged(tmp_path):
    (tmp_path / "STATUS.json").write_bytes(b"old")
    recorder = Recorder(tmp_path)
    with fs.using(recorder):
        fs.write_atomic(tmp_path / "STATUS.json", "new!")
        recorder.promise("new")
    found = {(dict(tree)["STATUS.json"], bool(promised)) for tree, promised in recorder.disks}
    assert found == {(b"old", False), (b"new!", False), (b"new!", True)}


# Replacing an intact folder by another of the same name -----------------------------------------


def replace(recorder: Recorder, root: Path) -> None:
    recorder.promise()
    save(root / "step-1", TWO)
    recorder.promise("two")


REPLACED: Saves = {"one": ("step-1", ONE), "two": ("step-1", TWO)}


def test_replacing_the_only_save_leaves_one_on_every_disk_once_swept(tmp_path):
    recorder = record(tmp_path, replace)
    assert verdict(recorder, sweep_and_read, REPLACED, tmp_path / "disks").red() == set()
    assert (tmp_path / "run/step-1/state.json").read_bytes() == TWO["state.json"]


def test_without_the_repair_in_sweep_a_replacement_could_lose_the_only_save(tmp_path):
    recorder = record(tmp_path, replace)
    result = verdict(recorder, read, REPLACED, tmp_path / "disks")
    assert result.red() == {LOST}


# Negative controls ------------------------------------------------------------------------------


def in_place(recorder: Recorder, root: Path) -> None:
    save_then_drop(recorder, root, save_in_place)


CONTROLS = {
    "no fsync(file)": (save_then_drop, of_tensors, read, {LOST, BROKEN}),
    "no fsync(file), no hashes": (
        save_then_drop,
        of_tensors,
        read_without_hashes,
        {LOST, BROKEN, GARBAGE},
    ),
    "no fsync(COMPLETE)": (save_then_drop, of_marker, read, {LOST, BROKEN}),
    "no fsync(manifest)": (save_then_drop, of_manifest, read, {LOST, BROKEN}),
    "no fsync(draft)": (save_then_drop, of_draft, read, {LOST, BROKEN}),
    "no fsync(draft), marker only": (
        save_then_drop,
        of_draft,
        read_by_marker,
        {LOST, BROKEN, GARBAGE},
    ),
    "no fsync(parent)": (save_then_drop, of_parent, read, {LOST, BROKEN}),
    "in place, hashes": (in_place, None, read, set()),
    "in place, marker only": (in_place, None, read_by_marker, {GARBAGE}),
    "in place, by name": (in_place, None, read_by_name, {GARBAGE}),
    "old deleted first": (drop_then_save, None, read, {LOST}),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_each_defence_removed_turns_its_columns_red(tmp_path, name):
    writer, skips, reader, red = CONTROLS[name]
    args = () if skips is None else (skips,)
    result = simulate(tmp_path, writer, *args, reader=reader)
    assert result.red() == red, result
