"""Names of strangers in error lines: one line, and the part that tells them apart."""

from __future__ import annotations

from lit_restore.io.wording import shown


def test_a_long_name_is_cut_where_it_matters_least() -> None:
    path = "/".join(["folder"] * 20) + "/c.png"
    assert len(shown(path)) == len(shown(path, tail=True)) == 80
    assert shown(path).startswith("folder/")
    assert shown(path, tail=True).endswith("folder/c.png")
    assert shown("c.png", tail=True) == "c.png"


def test_control_characters_are_spelled_out() -> None:
    assert shown("a\nb\x1b[2J") == r"a\nb\x1b[2J"
