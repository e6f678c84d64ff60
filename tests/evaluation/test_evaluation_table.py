"""Tables are pure functions of rows; every number says what it is."""

from __future__ import annotations

import csv
import random
import re

import pytest

from lit_restore.errors import UserError
from lit_restore.evaluation.baselines import TV_WEIGHTS, tv_chambolle
from lit_restore.evaluation.methods import Method, split_name
from lit_restore.evaluation.protocols import PROTOCOLS, find_protocol
from lit_restore.evaluation.rows import Row
from lit_restore.evaluation.table import comma_separated, make_table, markdown, plain_text

COLUMNS = ["psnr_rgb_b0", "ssim_rgb_b0", "psnr_y_b0", "ssim_y_b0"]


def method(name: str, family: str | None = None, setting: str = "") -> Method:
    return Method(name=name, family=family, setting=setting, restore=lambda x, sigma: x)


def row(key: str, name: str, value: float, **more: object) -> Row:
    metrics = dict(zip(COLUMNS, (value, value / 50, value + 1, value / 40), strict=True))
    return Row(**{"key": key, "method": name, "sigma": 25.0, "metrics": metrics, **more})


METHODS = [
    method("noisy"),
    method("tv-1", "tv", "weight 0.08"),
    method("tv-2", "tv", "weight 0.10"),
    method("net"),
]
ROWS = [
    row(key, name, value)
    for name, values in {
        "noisy": (20, 21),
        "tv-1": (28, 30),
        "tv-2": (31, 26),
        "net": (30, 31),
    }.items()
    for key, value in zip("ab", values, strict=True)
]


def table(rows=ROWS, methods=METHODS, **options):
    return make_table(find_protocol("denoise-25"), rows, methods, **{"total": 2, **options})


def test_the_best_mean_of_a_family_is_shown_and_named() -> None:
    lines = {line.label: line.means["psnr_rgb_b0"] for line in table().lines}
    assert lines == {"noisy": 20.5, "tv (weight 0.08)": 29.0, "net": 30.5}
    assert "0.08: 29.00, 0.10: 28.50" in plain_text(table())


def test_the_best_is_chosen_at_each_level() -> None:
    protocol = find_protocol("denoise")
    rows = [
        row("a", name, value, sigma=sigma)
        for sigma, pair in {15.0: (30, 29), 25.0: (27, 28), 50.0: (23, 25)}.items()
        for name, value in zip(("tv-1", "tv-2"), pair, strict=True)
    ]
    found = make_table(protocol, rows, METHODS[1:3], total=1)
    assert [(line.sigma, line.method) for line in found.lines] == [
        (15.0, "tv-1"),
        (25.0, "tv-2"),
        (50.0, "tv-2"),
    ]


def test_a_candidate_that_failed_somewhere_does_not_win() -> None:
    rows = [r for r in ROWS if (r.key, r.method) != ("b", "tv-2")]
    rows.append(Row(key="b", method="tv-2", sigma=25.0, error="no memory"))
    found = table(rows)
    assert "tv (weight 0.08)" in [line.label for line in found.lines]
    assert "failed: b (tv-2): no memory" in found.notes


def test_means_do_not_depend_on_the_order_of_rows() -> None:
    rng = random.Random(0)
    rows = [row(f"{i:03d}", "net", rng.uniform(20, 40)) for i in range(200)]
    expected = comma_separated(table(rows, [METHODS[3]], total=200))
    for _ in range(5):
        rng.shuffle(rows)
        assert comma_separated(table(rows, [METHODS[3]], total=200)) == expected


def test_seeds_are_averaged_within_a_picture_first() -> None:
    rows = [row("a", "net", 20), row("a", "net", 30, seed=1), row("b", "net", 35)]
    (line,) = table(rows, [METHODS[3]]).lines
    assert line.means["psnr_rgb_b0"] == 30.0


def test_missing_pictures_and_infinite_ones_are_counted_not_averaged() -> None:
    rows = [
        row("a", "net", 30),
        Row(key="b", method="net", sigma=25.0, error="truncated"),
        Row(key="c", method="net", sigma=25.0, blanks={COLUMNS[0]: "identical to the truth"}),
    ]
    found = table(rows, [METHODS[3]], total=3)
    assert found.lines[0].means["psnr_rgb_b0"] == 30.0
    text = plain_text(found)
    assert "1 of 3" in text
    assert "failed: b: truncated" in text
    assert "left out for 1 of 3 rows, identical to the truth: c (net)" in text


def test_every_heading_names_colour_and_border_and_the_text_fits() -> None:
    text = plain_text(table(footer=["run abc", "python evaluate.py run " + "x" * 200]))
    header = next(line for line in text.splitlines() if "method" in line)
    assert re.findall(r"(?:PSNR|SSIM) (?:RGB|Y) b0", header) == [
        "PSNR RGB b0",
        "SSIM RGB b0",
        "PSNR Y b0",
        "SSIM Y b0",
    ]
    assert not re.search(r"PSNR(?! (RGB|Y|=))", text)
    assert max(len(line) for line in text.splitlines() if not line.startswith("python")) <= 100
    assert "python evaluate.py run " + "x" * 200 in text.splitlines()


def test_markdown_and_csv_say_the_same() -> None:
    lines = markdown(table()).splitlines()
    assert lines[2].startswith("| σ | method | PSNR RGB b0 |")
    assert lines[5].startswith("| 25 | tv (weight 0.08) | 29.00 | 0.5800 |")
    rows = list(csv.DictReader(comma_separated(table()).splitlines()))
    assert rows[1]["psnr_rgb_b0"] == "29.0"
    assert rows[1]["ssim_rgb_b0"] == repr((28 / 50 + 30 / 50) / 2)


def test_hostile_names_stay_inside_their_cell() -> None:
    rows = [row("a", "net", 30), Row(key="b|<b>", method="net", sigma=25.0, error="x|y")]
    text = markdown(table(rows, [METHODS[3]]))
    assert "failed: b\\|&lt;b>: x\\|y" in text


def test_part_of_the_pictures_is_said_in_the_title() -> None:
    assert table(of=5).title == "denoise-25 v1, 2 of 5 pictures, noise seeds 0"
    assert table(of=2).title == "denoise-25 v1, 2 pictures, noise seeds 0"


# Protocols ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_are_complete_and_distinct(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    assert protocol.version >= 1
    identities = [str(p.identity()) for p in PROTOCOLS.values()]
    assert identities.count(str(protocol.identity())) == 1
    words = " ".join(protocol.words)
    assert f"protocol {name} v{protocol.version}" in words
    assert "border" in words


def test_an_unknown_protocol_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean denoise-25"):
        find_protocol("denoise25")


def test_tv_candidates_span_the_stated_weights() -> None:
    methods = tv_chambolle()
    assert (TV_WEIGHTS[0], TV_WEIGHTS[-1]) == (0.04, 0.20)
    assert len({m.name for m in methods}) == len(TV_WEIGHTS) == 9
    assert {m.family for m in methods} == {"tv-chambolle"}
    assert methods[2].setting == "weight 0.08"


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("runs/small", "small", "runs/small"),
        ("a/net.safetensors", "net", "a/net.safetensors"),
        ("ours=a/net.safetensors", "ours", "a/net.safetensors"),
        ("runs/lr=1/x y", "x-y", "runs/lr=1/x y"),
    ],
)
def test_a_checkpoint_is_named_by_its_user_or_its_file(text: str, name: str, path: str) -> None:
    found, where = split_name(text, option="--ckpt")
    assert (found, str(where)) == (name, path)


@pytest.mark.parametrize("text", ["a b=x", "=x", "..=x"])
def test_impossible_names_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="name"):
        split_name(text, option="--ckpt")
