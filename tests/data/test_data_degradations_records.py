"""What a checkpoint records of a degradation, and what differs from another."""

from __future__ import annotations

from typing import Any

import pytest

from lit_restore.data.degradations import (
    Chain,
    Degradation,
    Downscale,
    GaussianBlur,
    GaussianNoise,
    build_degradation,
    describe,
    same_degradation,
)
from lit_restore.errors import UserError


def record(name: str, **options: object) -> dict[str, object]:
    return {"name": name, "options": options}


@pytest.mark.parametrize(
    ("recorded", "given", "line"),
    [
        (None, None, None),
        (describe(Downscale(4)), describe(Downscale(4.0)), None),
        (record("Downscale", scale=4), describe(Downscale(4)), None),  # options were fewer once
        (describe(GaussianNoise(0.1, 0.3)), record("GaussianNoise", sigma_min=0.1,
         sigma_max=0.1 + 0.2), None),
        (describe(Downscale(4)), describe(Downscale(2)),
         "trained with Downscale.scale 4, given 2"),
        (describe(Downscale(2)), describe(Downscale(2, restore_size=True)),
         "trained with Downscale.restore_size False, given True"),
        (describe(Downscale(4)), describe(GaussianBlur()),
         "trained with Downscale, given GaussianBlur"),
        (None, describe(GaussianBlur()), "trained with no degradation, given GaussianBlur"),
        (describe(GaussianBlur()), None, "trained with GaussianBlur, given no degradation"),
        (record("Later", more=1), record("Later", more=2), "trained with Later.more 1, given 2"),
        (describe(Chain([GaussianBlur(), Downscale(4)])),
         describe(Chain([GaussianBlur(), Downscale(3)])),
         "trained with Chain.steps.1.options.scale 4, given 3"),
        (describe(Chain([GaussianBlur()])), describe(Chain([GaussianBlur(), Downscale(3)])),
         "trained with Chain.steps 1 steps, given 2 steps"),
    ],
)  # fmt: skip
def test_one_line_says_what_differs(recorded: Any, given: Any, line: str | None) -> None:
    assert same_degradation(recorded, given) == line


def test_a_chain_is_rebuilt_with_its_steps() -> None:
    chain = Chain([GaussianBlur(1, 2), Chain([Downscale(3), GaussianNoise()])])
    again = build_degradation(describe(chain))
    assert isinstance(again, Chain)
    assert isinstance(again.steps[1], Chain)
    assert describe(again) == describe(chain)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (record("Rain"), "Rain is not one of GaussianNoise"),
        (record("Downscale", factor=2), "its options are not those of Downscale"),
        (record("Downscale", scale="2"), "its options are not those of Downscale"),
        (record("Chain", steps=[{"name": "Snow"}]), "Snow is not one of"),
        (record("Chain", steps=[3]), "3 is not a name and its options"),
        ({}, "None is not one of"),
    ],
)
def test_records_of_nothing_known_are_one_line(wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"data\.degradation: {message}"):
        build_degradation(wrong)


def test_a_config_names_a_chain_and_its_steps() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--degradation", type=Degradation | None)
    text = (
        "{class_path: Chain, init_args: {steps: ["
        "{class_path: GaussianBlur, init_args: {sigma_max: 2}}, "
        "{class_path: Downscale, init_args: {scale: 2.5, restore_size: true}}]}}"
    )
    built = parser.instantiate(parser.parse_args(["--degradation", text])).degradation
    wanted = Chain([GaussianBlur(sigma_max=2.0), Downscale(2.5, restore_size=True)])
    assert same_degradation(describe(built), describe(wanted)) is None
