"""A folder is published whole, believed only if it is what was published, and dropped whole."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_restore.errors import UserError
from lit_restore.io import folder, fs

STEP = re.compile(r"step-\d{12}")
FILES = {"ema.safetensors": b"\0" * 1000, "network.safetensors": b"weights", "state.json": b"{}"}


def save(target: Path, files: dict[str, bytes] = FILES) -> folder.Manifest:
    draft = folder.Draft.begin(target)
    for name, data in files.items():
        draft.write(name, data)
    return draft.publish()


@pytest.fixture
def step(tmp_path: Path) -> Path:
    target = tmp_path / "checkpoints" / "step-000000064000"
    save(target)
    return target


def refusal(step: Path, **options: bool) -> str:
    with pytest.raises(UserError) as info:
        folder.verify(step, **options)
    where, _, message = str(info.value).partition(": ")
    assert where == str(step)
    return message


def seal(step: Path, manifest: bytes) -> None:
    """Give the folder a manifest of our own, with the COMPLETE that belongs to it."""
    (step / "manifest.json").write_bytes(manifest)
    digest = hashlib.sha256(manifest).hexdigest()
    (step / "COMPLETE").write_text(f"{digest}  manifest.json\n")


def test_what_is_published_is_what_was_written(step):
    manifest = folder.verify(step)
    assert [entry.name for entry in manifest.files] == sorted(FILES)
    for entry in manifest.files:
        data = (step / entry.name).read_bytes()
        assert data == FILES[entry.name]
        assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert {path.name for path in step.iterdir()} == {*FILES, "manifest.json", "COMPLETE"}
    assert folder.complete(step.parent, STEP) == [step]


def test_a_file_can_be_written_by_a_function_a_text_or_bytes(tmp_path):
    draft = folder.Draft.begin(tmp_path / "out")
    draft.write("a", lambda file: [file.write(b"one"), file.write(b"two")])
    draft.write("b", "σ")
    draft.write("c", bytearray(b"x"))
    draft.publish()
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert (found["a"], found["b"], found["c"]) == (b"onetwo", "σ".encode(), b"x")


def test_the_marker_can_be_checked_with_standard_tools(step):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    done = subprocess.run(["sha256sum", "-c", "COMPLETE"], cwd=step, capture_output=True)
    assert done.returncode == 0


def test_nothing_has_the_name_before_publish_or_after_abandon(tmp_path):
    target = tmp_path / "step-000000000001"
    draft = folder.Draft.begin(target)
    draft.write("a", b"x")
    assert draft.folder.parent == target.parent
    assert re.fullmatch(r"tmp-step-000000000001-[0-9a-f]{8}", draft.folder.name)
    assert not target.exists()
    assert folder.complete(tmp_path, re.compile(".*")) == []
    draft.abandon()
    draft.abandon()
    assert list(tmp_path.iterdir()) == []


def test_ranks_write_their_own_files_and_one_publishes(tmp_path):
    target = tmp_path / "step-000000000002"
    first = folder.Draft.begin(target)
    others = [folder.Draft(target, first.folder) for _ in range(2)]
    entries = [draft.write(f"optim-r{r}", str(r)) for r, draft in enumerate([first, *others])]
    assert first.publish(entries) == folder.verify(target)
    assert len(folder.verify(target).files) == 3


def test_a_file_of_another_rank_that_is_not_here_fails_the_save(tmp_path):
    draft = folder.Draft.begin(tmp_path / "step-000000000002")
    elsewhere = folder.FileEntry("optim-r1.safetensors", 3, "0" * 64)
    with pytest.raises(OSError, match=r"optim-r1\.safetensors is missing"):
        draft.publish([draft.write("a", b"x"), elsewhere])
    draft.abandon()
    assert list(tmp_path.iterdir()) == []


# Verification: the lines of reliability §6 --------------------------------------------------------


def test_no_such_checkpoint_names_the_newest(step):
    missing = step.with_name("step-000000065000")
    assert refusal(missing) == "no such checkpoint; newest complete is step-000000064000"
    alone = step.parent.parent / "nowhere" / "step-000000000001"
    assert refusal(alone) == "no such checkpoint"


def test_damage_is_named(step):
    cases = {
        "COMPLETE": "no COMPLETE: the save did not finish",
        "manifest.json": "manifest.json is missing",
        "network.safetensors": "network.safetensors is missing",
    }
    for name, message in cases.items():
        data = (step / name).read_bytes()
        (step / name).unlink()
        assert refusal(step, hashes=False) == refusal(step) == message
        (step / name).write_bytes(data)
    folder.verify(step)

    (step / "ema.safetensors").write_bytes(b"\0" * 999)
    assert refusal(step) == "ema.safetensors: 999 bytes, the manifest says 1000"
    (step / "ema.safetensors").unlink()
    (step / "ema.safetensors").mkdir()
    assert refusal(step).startswith("ema.safetensors: ")


def test_every_flipped_byte_is_found(step):
    """Sizes only would believe nearly all of them."""
    believed = 0
    for path in step.iterdir():
        data = path.read_bytes()
        # Past the digest COMPLETE holds only a file name for `sha256sum -c`.
        end = 64 if path.name == "COMPLETE" else len(data)
        for position in range(0, end, max(1, end // 40)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
            if path.name in FILES:
                assert refusal(step) == f"{path.name}: sha256 differs from the manifest"
                believed += folder.complete(step.parent, STEP) == [step]
            else:
                assert refusal(step) == "manifest.json: sha256 differs from COMPLETE"
        path.write_bytes(data)
    assert believed > 40
    folder.verify(step)


def test_complete_lists_only_what_holds_and_matches_wholly(tmp_path, step):
    names = ["step-000000064000.backup", "old-step-000000064000", "step-64000"]
    for name in names:
        shutil.copytree(step, step.with_name(name))
    newer = step.with_name("step-000000065000")
    shutil.copytree(step, newer)
    (step.with_name("step-000000066000")).mkdir()
    (step.with_name("step-000000067000")).write_text("a file")
    shutil.copytree(step, step.with_name("step-000000068000"))
    (step.with_name("step-000000068000") / "state.json").unlink()
    shutil.copytree(step, step.with_name("tmp-step-000000069000-0123abcd"))
    assert folder.complete(step.parent, STEP) == [step, newer]
    everything = {path.name for path in folder.complete(step.parent, re.compile(".*"))}
    assert everything == {step.name, newer.name, *names}
    assert folder.complete(tmp_path / "none", STEP) == []


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"null",
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"format": 2, "files": []}',
        b'{"format": 1}',
        b'{"format": 1, "files": 3}',
        b'{"format": 1, "files": ["a"]}',
        b'{"format": 1, "files": [{"name": "a"}]}',
        b"\xff\xfe",
    ],
)
def test_a_sealed_manifest_that_is_none_is_refused(step, manifest):
    seal(step, manifest)
    assert refusal(step).startswith("manifest.json: not a manifest (")


ENTRY = {"name": "state.json", "size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc/passwd"},
        {"name": "/etc/passwd"},
        {"name": ".."},
        {"name": "a/b"},
        {"name": "a\0"},
        {"name": "a\n"},
        {"name": "\ud800"},
        {"name": ""},
        {"name": 3},
        {"size": -1},
        {"size": 2.0},
        {"size": True},
        {"size": None},
        {"sha256": "0" * 63},
        {"sha256": 0},
        {"extra": 1},
    ],
)
def test_a_manifest_cannot_lead_out_of_its_folder_or_confuse_us(step, change):
    seal(step, json.dumps({"format": 1, "files": [ENTRY | change]}).encode())
    assert refusal(step).startswith("manifest.json: not a manifest (")


def test_a_file_listed_twice_is_refused(step):
    seal(step, json.dumps({"format": 1, "files": [ENTRY, ENTRY]}).encode())
    assert refusal(step) == "manifest.json: a file is listed twice"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["format", "files", "name", "size", "sha256", "x"]), inner
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=JSON | st.builds(lambda files: {"format": 1, "files": files}, st.lists(JSON)))
def test_any_manifest_gives_a_value_or_our_error(step, content):
    seal(step, json.dumps(content).encode())
    try:
        found = folder.verify(step).files
    except UserError as error:
        found = str(error)
    assert found == () or "\n" not in found


# Publishing over something ------------------------------------------------------------------------


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_the_same_content_again_leaves_the_folder_alone(step):
    before = step.stat().st_ino
    save(step)
    assert step.stat().st_ino == before
    assert names(step.parent) == [step.name]


def test_other_content_replaces_an_intact_folder(step):
    save(step, {"state.json": b"new"})
    assert [entry.name for entry in folder.verify(step).files] == ["state.json"]
    assert names(step.parent) == [step.name]


def test_a_damaged_folder_is_replaced_even_if_its_manifest_is_the_same(step):
    (step / "network.safetensors").write_bytes(b"WEIGHTS")
    assert folder.complete(step.parent, STEP) == [step]  # the sizes are right
    save(step)
    assert folder.verify(step)
    assert names(step.parent) == [step.name]


def test_a_file_or_a_folder_in_the_way_is_replaced(tmp_path):
    (tmp_path / "step-000000000001").write_text("a file")
    (tmp_path / "step-000000000002").mkdir()
    for name in names(tmp_path):
        save(tmp_path / name)
    assert len(folder.complete(tmp_path, STEP)) == 2


# Dropping and sweeping ----------------------------------------------------------------------------


def test_discard_takes_the_whole_folder(step):
    save(step.with_name("step-000000065000"))
    folder.discard(step)
    assert names(step.parent) == ["step-000000065000"]
    with pytest.raises(FileNotFoundError):
        folder.discard(step)


def test_sweep_removes_what_a_crash_left_and_nothing_unknown(step):
    parent = step.parent
    left = ["tmp-step-000000000001-0a1b2c3d", "trash-step-000000000002-0a1b2c3d"]
    for name in left:
        (parent / name).mkdir()
        (parent / name / "a").touch()
    (parent / "tmp-STATUS.json-00000000").touch()
    unknown = ["tmp-notes", "trash-", "tmp", "step-000000064000.backup", "tmp-a-0a1b2c3", "best"]
    for name in unknown:
        (parent / name).mkdir()
    removed = folder.sweep(parent)
    assert [path.name for path in removed] == sorted([*left, "tmp-STATUS.json-00000000"])
    assert names(parent) == sorted([step.name, *unknown])
    assert folder.sweep(parent / "none") == []


def test_sweep_finishes_a_replacement_that_was_cut_between_its_two_renames(step):
    draft = step.with_name(f"tmp-{step.name}-0a1b2c3d")
    shutil.copytree(step, draft)
    step.rename(step.with_name(f"trash-{step.name}-0a1b2c3d"))
    folder.sweep(step.parent)
    assert names(step.parent) == [step.name]
    folder.verify(step)


def test_sweep_does_not_publish_a_draft_otherwise(step):
    """A save that nobody acknowledged is none; nor does a dropped folder come back."""
    for name in ("tmp-step-000000065000-0a1b2c3d", "trash-step-000000066000-0a1b2c3d"):
        shutil.copytree(step, step.with_name(name))
    (step.with_name("tmp-step-000000067000-0a1b2c3d")).mkdir()
    (step.with_name("trash-step-000000067000-0a1b2c3d")).mkdir()
    folder.sweep(step.parent)
    assert names(step.parent) == [step.name]


def test_a_save_that_fails_half_way_leaves_nothing(tmp_path):
    class Full(fs.Disk):
        def write(self, fd: int, data: memoryview) -> None:
            raise OSError(28, "No space left on device")

    draft = folder.Draft.begin(tmp_path / "step-000000000001")
    with fs.using(Full()), pytest.raises(OSError, match="No space"):
        draft.write("a", b"x")
    draft.abandon()
    assert names(tmp_path) == []
