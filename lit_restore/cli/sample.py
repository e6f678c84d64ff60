"""`lit-restore sample --ckpt RUN --out FOLDER`: pictures from a generative training."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from lit_restore.errors import ExitCode, Preempted, UserError, require_at_least
from lit_restore.evaluation import given

if TYPE_CHECKING:
    from lit_restore.diffusion import Guidance, SamplerOptions
    from lit_restore.sampling.record import Made
    from lit_restore.sampling.run import SampleJob
    from lit_restore.weights import LoadedNetwork

_EXPLANATION = """\
Writes OUT/images/000000.png … (with -classN where there are classes), OUT/grid.png and
OUT/samples.json, which says what made them. Sample k depends on the weights, --seed, k, its class
and the options of the solver, not on --n, --batch or --devices but for rounding. Interrupted, run
the same command again: it makes what is missing; with a larger --n it adds samples. Exit code 3:
an adaptive solver gave up on some samples."""
_NFE = 50
_SPOKEN = {
    "sampler.solver": "--solver",
    "sampler.nfe": "--nfe",
    "sampler.steps": "--nfe",
    "sampler.rtol": "--rtol",
    "sampler.atol": "--atol",
    "guidance.scale": "--guidance",
    "guidance.schedule": "--guidance_schedule",
    "guidance.interval": "--guidance_interval",
}
"""Where an option is wrong → what was typed."""


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EXPLANATION
    add = parser.add_argument
    add(
        "--ckpt",
        required=True,
        type=given.path,
        metavar="F",
        help="a run folder (its newest checkpoint), a checkpoint, or an exported file",
    )
    add(
        "--out", required=True, type=given.path, metavar="FOLDER", help="new, or to be gone on with"
    )
    add("--profile", type=given.text, metavar="NAME", help="which average; raw for none")
    add("--n", type=int, default=16, help="samples (default 16)")
    add(
        "--class",
        dest="classes",
        type=given.text,
        metavar="C",
        help="3, or 0,1,2 in turn, or all (default), or none for samples without a label",
    )
    add("--seed", type=int, default=0, help="of all noise (default 0)")
    add(
        "--solver",
        default="heun",
        help="heun (default), euler, midpoint, dpmpp, dpmpp_2m, dopri5, sde_euler, sde_heun or "
        "torchdiffeq:METHOD",
    )
    add("--nfe", type=int, help="evaluations of a sample at most (default 50; not for dopri5)")
    add("--rtol", type=float, help="dopri5: relative tolerance (default 1e-3)")
    add("--atol", type=float, help="dopri5: absolute tolerance (default 1e-6)")
    add("--guidance", type=float, metavar="S", help="stress the class: scale, 1 is none (1.4, 4 …)")
    add(
        "--guidance_schedule",
        metavar="NAME",
        help="constant (default), power_cosine_data or power_cosine_noise",
    )
    add(
        "--guidance_interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="guide between these times only; 0 is noise, 1 is data",
    )
    add("--vae", type=given.path, metavar="FOLDER", help="the autoencoder, for latents")
    add("--batch", type=int, default=64, help="samples at once (default 64)")
    add("--devices", default="auto", help="auto (all GPUs), cpu, cpu,cpu, or GPUs: 0,1")
    add("--precision", choices=("32", "bf16"), default="32")
    add("--npz", action="store_true", help="also one array: samples.npz, arr_0 uint8 NHWC")


def run(args: argparse.Namespace) -> int:
    """Make the samples; exit code 3 where the solver gave up on some."""
    given.print_any_name()
    require_at_least(1, **{"--n": args.n, "--batch": args.batch})
    given.check_out(args.out)
    with _stoppable():
        job = _job(args)
        from lit_restore.sampling.run import make_samples

        try:
            made = make_samples(job)
        except OSError as error:
            raise given.cannot_write(error.filename or args.out, error) from None
    return _tell(job, made)


def _job(args: argparse.Namespace) -> SampleJob:
    from lit_restore.sampling.run import SampleJob
    from lit_restore.sampling.settings import settings_of
    from lit_restore.weights import load_prior

    try:
        sampler, guidance = _sampler(args), _guidance(args)
    except UserError as error:
        raise UserError(error.message, where=_SPOKEN.get(error.where or "", error.where)) from None
    devices = _devices(args.devices)
    _, loaded = load_prior(args.ckpt, args.profile, guidance)
    settings = settings_of(
        loaded,
        seed=args.seed,
        classes=_classes(args.classes, loaded, guided=guidance is not None),
        sampler=sampler,
        guidance=guidance,
        precision=args.precision,
        vae=args.vae,
    )
    return SampleJob(
        loaded=loaded,
        settings=settings,
        vae=args.vae,
        out=args.out,
        count=args.n,
        batch=args.batch,
        devices=devices,
        npz=args.npz,
    )


def _sampler(args: argparse.Namespace) -> SamplerOptions:
    from lit_restore.diffusion import SamplerOptions, solver_named

    solver = solver_named(args.solver, where="--solver")
    adaptive = solver.kind == "adaptive"
    if not adaptive and solver.evaluations is None:
        told = "its steps have no fixed cost, so --nfe says nothing; take torchdiffeq:rk4, say"
        raise UserError(told, where=f"--solver {args.solver}")
    nfe = args.nfe if args.nfe is not None or adaptive else _NFE
    return SamplerOptions(solver=args.solver, nfe=nfe, rtol=args.rtol, atol=args.atol)


def _guidance(args: argparse.Namespace) -> Guidance | None:
    from lit_restore.diffusion import Guidance

    schedule, interval = args.guidance_schedule, args.guidance_interval
    if args.guidance is None:
        for option, value in (("schedule", schedule), ("interval", interval)):
            if value is not None:
                raise UserError("needs a scale: --guidance 1.5", where=f"--guidance_{option}")
        return None
    low, high = interval or (0.0, 1.0)
    return Guidance(scale=args.guidance, schedule=schedule or "constant", interval=(low, high))


def _classes(text: str | None, loaded: LoadedNetwork, *, guided: bool) -> list[int] | None:
    """Labels in turn; None for samples without."""
    from lit_restore.sampling.settings import check_classes
    from lit_restore.weights.prior import class_count, model_config

    count, where = class_count(loaded), f"--class {text}"
    if text is None or text == "all":
        if text and not count:
            raise UserError("the network has no classes; leave it out", where=where)
        return list(range(count)) or None
    if text == "none":
        if guided:
            raise UserError("leaves nothing to guide; leave --guidance out", where=where)
        if count and model_config(loaded).get("label_dropout") == 0:
            told = "was trained with label_dropout 0, so never without a label; give --class all"
            raise UserError(told, where=loaded.source)
        return None
    try:
        labels = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError("expects numbers as in 0,1,2, or all, or none", where=where) from None
    check_classes(loaded, labels, where=where)
    return labels


def _devices(text: str) -> list[str]:
    """The device of each process."""
    import torch

    count, where = torch.cuda.device_count(), f"--devices {text}"
    if text == "auto":
        return [f"cuda:{k}" for k in range(count)] or ["cpu"]
    devices = []
    for word in text.split(","):
        if word != "cpu" and not word.isdecimal():
            raise UserError("expects auto, cpu, or numbers of GPUs as in 0,1", where=where)
        if word != "cpu" and int(word) >= count:
            raise UserError(f"there are {count} GPUs here; use cpu or auto", where=where)
        devices.append(word if word == "cpu" else f"cuda:{int(word)}")
    return devices


@contextmanager
def _stoppable() -> Iterator[None]:
    """A scheduler's signal ends the command at once: what is written stands, and it goes on."""

    def leave(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise Preempted(f"stopped by {name}; the same command makes what is missing")

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(job: SampleJob, made: dict[int, Made]) -> int:
    costs = sorted({m.nfe for m in made.values()})
    cost = f"{costs[0]}" if len(costs) == 1 else f"{costs[0]} to {costs[-1]}"
    print(f"{job.out}: {len(made)} samples of {cost} evaluations each; grid.png, samples.json")
    short = [index for index, m in sorted(made.items()) if not m.finished]
    if not short:
        return int(ExitCode.OK)
    told = f"{len(short)} samples, the first of them {short[0]}"
    print(f"failed: the solver gave up on {told}; raise --rtol, --atol", file=sys.stderr)
    return int(ExitCode.SOME_FAILED)
