"""Configs: plain data, read as it looks, or one line that names the place."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse._loaders_dumpers import yaml_load

from lit_restore.errors import UserError
from lit_restore.io.yaml import parse_yaml, read_yaml

LINES = {
    "yaml_tag": (
        "a: 1\nb:\n  c: !!python/object/apply:os.system [x]",
        "line 3: tag !!python/object/apply is refused",
    ),
    "yaml_tag_own": ("a: !Foo 1", "line 1: tag !Foo is refused"),
    "yaml_tag_binary": ("a: !!binary aGk=", "line 1: tag !!binary is refused"),
    "yaml_alias": ("a: 1\nb: &x [1]\nc: *x", "line 2: anchors and aliases are refused"),
    "yaml_merge": ("a:\n  <<: {b: 1}", "line 2: key << is not text; quote it"),
    "yaml_deep": ("a: " + "[" * 50 + "]" * 50, "nested deeper than 50"),
    "yaml_deep_open": ("[" * 900_000, "nested deeper than 50"),
    "yaml_dup": (
        "a: 1\nb:\n  x: 1\n  lr: 1\nc: 2\nd:\n  lr: 2\n  y: 1\n  lr: 3",
        'line 9: key "lr" appears twice',
    ),
    "yaml_dup_quoted": ('a: 1\n"a": 2', 'line 2: key "a" appears twice'),
    "yaml_dup_flow": ("x: [{a: 1, a: 2}]", 'line 1: key "a" appears twice'),
    "yaml_tab": ("a:\n  b: 1\n  c:\n\td: 2", "line 4: tabs cannot indent YAML"),
    "yaml_tab_after": ("a:\n  b: 1\n\tc: 2", "line 3: tabs cannot indent YAML"),
    "yaml_empty": ("", "the config is empty"),
    "yaml_comment": ("# nothing\n---\n", "the config is empty"),
    "yaml_big": ("a: " + "x" * 1_400_000, "1.4 MB is above 1 MB"),
    "yaml_list": ("- 1", "expected options (key: value), found something else"),
    "yaml_word": ("hello", "expected options (key: value), found something else"),
    "yaml_second": ("a: 1\n---\nb: 2", "line 2: a second document (---) begins"),
    "yaml_key_bool": ("a: 1\non: 2", "line 2: key on is not text; quote it"),
    "yaml_key_int": ("1: 2", "line 1: key 1 is not text; quote it"),
    "yaml_key_list": ("? [a]\n: 2", "line 1: key of a list or mapping is not text; quote it"),
    "yaml_time": (
        "a: 1:30",
        "line 1: 1:30 is no decimal number in YAML; quote or rewrite it",
    ),
    "yaml_octal": ("a: 0755", "line 1: 0755 is no decimal number in YAML; quote or rewrite it"),
    "yaml_syntax": ("a: b: c", "line 1: mapping values are not allowed in this context"),
}


@pytest.mark.parametrize("case", LINES)
def test_refused_config_says_why_in_one_line(tmp_path: Path, case: str) -> None:
    text, message = LINES[case]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert (caught.value.message, caught.value.where) == (message, str(path))


def test_bytes_that_are_no_text_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: 1\nb: 123 \xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 12\)"):
        read_yaml(path)
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path) == {"a": 1}
    path.write_bytes(b"a: \x00\n")
    with pytest.raises(UserError, match="not YAML"):
        read_yaml(path)


@pytest.mark.parametrize("url", ["https://x.org/c.yaml", "file:///c.yaml", "s3://b/c.yaml"])
def test_urls_are_no_files(url: str) -> None:
    with pytest.raises(UserError, match="configs are read from files only"):
        read_yaml(url)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c\.yaml"):
        read_yaml(tmp_path / "c.yaml")


def test_ordinary_config_loads(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "# recipe\nlr: 1e-3\nnet: {class_path: UNet, init_args: {width: 32}}\n"
        "sigma: [0, 244.3]\nresume: auto\nq: 'on'\nnote: |\n  a\ttab\nlist:\n- - 1\n  - null\n"
    )
    assert read_yaml(path) == {
        "lr": 0.001,
        "net": {"class_path": "UNet", "init_args": {"width": 32}},
        "sigma": [0, 244.3],
        "resume": "auto",
        "q": "on",
        "note": "a\ttab\n",
        "list": [[1, None]],
    }
    assert parse_yaml("a: " + "[" * 49 + "]" * 49, where="x")["a"]
    assert parse_yaml("a: !!str 1e3", where="x") == {"a": "1e3"}
    assert parse_yaml("a: " + "x" * 999_997, where="x")["a"]


SCALARS = """
1e-3 1E5 1.e2 .5 -.5 +1.5e+3 1_000.5 1_0e2 0 -7 0x1F 0b11 00 1e 1e+ e5 1.2.3 1__0 .e3 -.inf .inf
.NaN nan inf true yes no off On null ~ Null none 2026-01-01 12:61 a:b 08 0.0 -0 +1 1. . 5e-324
1e400 .5e3 .5e+3 +.inf 0o17 1,000 -1e-3
"""


@pytest.mark.parametrize("scalar", SCALARS.split())
def test_values_are_what_the_argument_parser_reads(scalar: str) -> None:
    """A config is read twice, for checking and for training; both must see the same."""
    ours, theirs = parse_yaml(f"a: {scalar}", where="x"), yaml_load(f"a: {scalar}")
    assert repr(ours) == repr(theirs)


def test_deep_text_is_refused_without_recursion() -> None:
    """Ten times the interpreter's recursion limit."""
    for text in ("a: " + "{a: " * 10_000, "\n".join(" " * i + "a:" for i in range(1200))):
        with pytest.raises(UserError, match="nested deeper than 50"):
            parse_yaml(text, where="x")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab:- \n\t[]{}&*!'\"|>#%?,01.e~<\0é\u2028"), max_size=40))
def test_any_text_gives_a_mapping_with_text_keys_or_one_error(text: str) -> None:
    found = None
    with contextlib.suppress(UserError):
        found = parse_yaml(text, where="x")
    if found is not None:
        assert all(isinstance(key, str) for key in found)


def test_reading_configs_does_not_import_torch() -> None:
    code = (
        "import lit_restore.io.yaml, lit_restore.io.redact, sys; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
