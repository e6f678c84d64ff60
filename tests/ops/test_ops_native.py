"""Libraries are built once, whole, for this CPU and user, and never taken from others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lit_restore.ops import native

SOURCE = 'extern "C" int answer() { return ANSWER; }\n'


def _compiler() -> bool:
    return next(native._compilers(), None) is not None


needs_compiler = pytest.mark.skipif(not _compiler(), reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own cache, and no memory of what was loaded."""
    monkeypatch.setenv("LIT_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    native._attempt.cache_clear()
    yield native.cache_folder()
    native._attempt.cache_clear()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """A source file beside others of its op."""

    def write(answer: str) -> Path:
        path = tmp_path / "some_op" / "cpu.cpp"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SOURCE.replace("ANSWER", answer))
        native._attempt.cache_clear()
        return path

    return write


@needs_compiler
def test_library_is_built_once_and_again_when_its_source_changes(
    write: Callable[[str], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.load(write("41")).answer() == 41
    assert native.load(write("42")).answer() == 42
    names = sorted(os.listdir(cache))
    assert len(names) == 2
    assert all(name.startswith(f"some_op-{native.levels()[0]}-") for name in names)

    def refuse(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(native, "_build", refuse)
    assert native.load(write("41")).answer() == 41


@needs_compiler
def test_header_and_compiler_are_part_of_the_name(
    write: Callable[[str], Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "inc" / "answer.h"
    header.parent.mkdir()
    source = write("WHAT")
    source.write_text('#include "answer.h"\n' + source.read_text())
    for count, value in enumerate((1, 2), 1):
        header.write_text(f"#define WHAT {value}\n")
        native._attempt.cache_clear()
        assert native.load(source, header).answer() == value
        assert len(os.listdir(cache)) == count
    words = next(native._compilers())[0]
    monkeypatch.setenv("CXX", f"{words[0]} -DUNUSED")
    native._attempt.cache_clear()
    native.load(source, header)
    assert len(os.listdir(cache)) == 3


@needs_compiler
def test_broken_library_is_built_again(write: Callable[[str], Path], cache: Path) -> None:
    source = write("7")
    native.load(source)
    (library,) = cache.iterdir()
    # Loaded under another name: the loader knows files by their inode.
    library.unlink()
    library.write_bytes(b"")
    library.chmod(0o700)
    native._attempt.cache_clear()
    assert native.load(source).answer() == 7


@needs_compiler
def test_processes_that_build_at_once_leave_one_whole_library(
    write: Callable[[str], Path], cache: Path
) -> None:
    source = write("5")
    code = (
        "import importlib.util as u, pathlib, sys\n"
        "spec = u.spec_from_file_location('native', sys.argv[1])\n"
        "native = u.module_from_spec(spec); spec.loader.exec_module(native)\n"
        "sys.exit(native.load(pathlib.Path(sys.argv[2])).answer())"
    )
    command = [sys.executable, "-c", code, native.__file__, str(source)]
    children = [subprocess.Popen(command) for _ in range(4)]
    assert [child.wait(60) for child in children] == [5] * 4
    assert len(list(cache.iterdir())) == 1


@needs_compiler
def test_failed_build_says_why_and_leaves_nothing(
    write: Callable[[str], Path], cache: Path
) -> None:
    source = write("no_such_name")
    with pytest.raises(native.NativeError, match=r"failed: .*no_such_name"):
        native.load(source)
    assert list(cache.iterdir()) == []


@needs_compiler
def test_compiler_without_the_instruction_set_builds_the_next(
    write: Callable[[str], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(native.LEVELS, "avx512", ("no-such-instructions",))
    monkeypatch.setattr(native, "levels", lambda: ["avx512", "baseline"])
    assert native.load(write("3")).answer() == 3
    assert [name.split("-")[1] for name in os.listdir(cache)] == ["baseline"]


def test_instruction_sets_follow_the_flags_of_the_cpu() -> None:
    assert native.levels(frozenset()) == ["baseline"]
    assert native.levels(frozenset({"avx2", "fma", "sse2"})) == ["avx2", "baseline"]
    assert native.levels(frozenset(native.LEVELS["avx512"])) == ["avx512", "avx2", "baseline"]


def test_no_compiler_is_one_reason(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native, "_warned", ["told"])
    source = write("1")
    assert (native.unavailable(source) or "").startswith("no C++ compiler found")
    with pytest.raises(native.NativeError, match="no C"):
        native.load(source)


def test_folder_that_others_may_write_to_is_not_used(
    write: Callable[[str], Path], cache: Path
) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(native.NativeError, match="others may write"):
        native.load(write("1"))


def test_cache_that_cannot_be_made_is_named(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_RESTORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(native.NativeError, match=r"cannot write to .*set LIT_RESTORE_CACHE"):
        native.load(write("1"))


def test_cache_is_beside_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_restore.io.cache import default_folder

    assert native.cache_folder().parent == default_folder()
    monkeypatch.delenv("LIT_RESTORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert native.cache_folder().parent == default_folder()


def test_a_user_without_a_home_gets_no_folder_named_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIT_RESTORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.fspath(path))
    from lit_restore.io.cache import default_folder

    assert native.cache_folder().parent == default_folder()
    assert "~" not in str(native.cache_folder())


@needs_compiler
def test_threads_that_build_at_once_both_get_the_best_library(
    write: Callable[[str], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, run, both = write("6"), native._run, threading.Barrier(2)

    def run_together(command: list[str]) -> str:
        said = run(command)
        if "-o" in command:
            both.wait(60)  # neither goes on before both have written
        return said

    monkeypatch.setattr(native, "_run", run_together)
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(native.load, [source, source]))
    assert [library.answer() for library in libraries] == [6, 6]
    assert [name.split("-")[1] for name in os.listdir(cache)] == native.levels()[:1]


@needs_compiler
def test_a_compiler_named_with_open_quotes_is_passed_over(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", 'c++ "-O1')
    assert native.load(write("8")).answer() == 8
