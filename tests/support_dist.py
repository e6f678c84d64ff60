"""A run of twenty steps on one or two forked ranks."""

from __future__ import annotations

from pathlib import Path

from support_runs import train, write_recipe

SHORT = {
    "total_samples": 160,  # 20 steps
    "checkpoint": {"every": 80},
    "validation": {"every": 0},
    "samples": {"every": 0, "count": 0},
    "metrics": {"every": 8},
    # Adam divides by the root of a tiny second moment early on, which blows rounding up.
    "model": {"optimizer": {"eps": 1e-4}},
}


def run_of(
    folder: Path,
    shards: Path,
    precision: str,
    *options: str,
    world: int = 1,
    strategy: str = "ddp",
    failpoint: str = "",
) -> Path:
    folder.mkdir(exist_ok=True)
    recipe = write_recipe(folder, shards, **SHORT)
    run = folder / "run"
    codes = train(
        recipe, run, f"--trainer.precision={precision}", *options,
        world=world, strategy=strategy, failpoint=failpoint, output=folder / "log",
    )  # fmt: skip
    expected = {0} if not failpoint else {-9}
    assert set(codes) <= expected | ({77} if failpoint else set()), (folder / "log.0").read_text()
    assert failpoint or codes == [0] * world, (folder / "log.0").read_text()
    return run
