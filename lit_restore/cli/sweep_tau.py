"""`lit-restore sweep-tau --ckpt F --data D --out DIR`: what tau does to fidelity and perception."""

from __future__ import annotations

import argparse
import shlex
import sys

from lit_restore.cli import evaluate_restoration
from lit_restore.cli.posterior_arguments import add_sampler
from lit_restore.errors import ExitCode, UserError
from lit_restore.evaluation import given
from lit_restore.io import fs

_EXPLANATION = """\
Restores the pictures at each tau and measures them, as `evaluate.py run` does, and writes curve.csv
and curve.png beside its files: PSNR against the first perceptual column that has a value. tau 0 is
the restoration network alone."""


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EXPLANATION
    add = parser.add_argument
    add("--ckpt", required=True, metavar="F", help="a fusion training")
    add("--data", required=True, type=given.text, metavar="D", help="clean pictures")
    add("--out", required=True, type=given.path, metavar="DIR", help="a new folder")
    add("--protocol", default="sr-x4", metavar="P", help="default sr-x4; or restore, deblur …")
    evaluate_restoration.add_networks_and_inputs(parser, taus=(5, 20, 50, 100, 250))
    add_sampler(parser, tau=False, seed=False)
    add("--prefix", default="", metavar="P", help="only what is below this folder in the data")
    add("--keys", type=given.path, metavar="FILE", help="only these pictures, one name a line")
    add("--profile", type=given.text, metavar="NAME", help="which average of the weights")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--weights-dir", type=given.path, metavar="DIR", help="of perceptual metrics")
    add("--resume", action="store_true", help="go on with --out where it exists")


def run(args: argparse.Namespace) -> int:
    """Measure, then draw."""
    try:
        return _run(args)
    except BrokenPipeError:
        raise  # `… | head` closed stdout; no file is to blame
    except OSError as error:
        raise given.cannot_write(error.filename or args.out, error) from None


def _run(args: argparse.Namespace) -> int:
    from lit_restore.evaluation.curve import Point, curve
    from lit_restore.evaluation.perceptual.names import PERCEPTUAL
    from lit_restore.evaluation.protocols import find_protocol
    from lit_restore.evaluation.table import plain_text
    from lit_restore.io import images
    from lit_restore.networks import FUSIONS
    from lit_restore.weights.loading import load_network

    if "=" in args.ckpt:
        raise UserError("is named by the sweep; give the path alone", where=f"--ckpt {args.ckpt}")
    if find_protocol(args.protocol).task == "denoise":
        raise UserError(
            "removes noise; give one that restores", where=f"--protocol {args.protocol}"
        )
    kind = load_network(args.ckpt).net.kind
    if kind not in FUSIONS:
        told = f"holds a {kind}, which has no tau; evaluate.py run measures it"
        raise UserError(told, where=f"--ckpt {args.ckpt}")
    whole = argparse.Namespace(
        **{
            **vars(args), "ckpt": [f"fusion={args.ckpt}"], "seeds": (0,), "background": None,
            "pictures": 8, "require": (), "baselines": None, "batch": 1,
        }
    )  # fmt: skip
    command = shlex.join(["lit-restore", "sweep-tau", *sys.argv[2:]])
    outcome = evaluate_restoration.run(whole, command)
    lines = {
        int(line.method.removeprefix("fusion-tau").replace("fusion-restorer", "0")): line.means
        for line in outcome.table.lines
        if line.method.startswith("fusion-")
    }
    columns = list(next(iter(lines.values())))
    rows = [",".join(["tau", *columns])]
    for tau, means in sorted(lines.items()):
        rows.append(",".join([str(tau), *("" if v is None else repr(v) for v in means.values())]))
    fs.write_atomic(args.out / "curve.csv", "\n".join(rows) + "\n")
    print(plain_text(outcome.table), end="")
    x = columns[0]
    found = [
        c
        for c in columns
        if c in PERCEPTUAL and not any(None in (m[x], m[c]) for m in lines.values())
    ]
    drawn = ""
    if found:
        points = [
            Point(label=f"tau {tau}", x=float(means[x] or 0), y=float(means[found[0]] or 0))
            for tau, means in sorted(lines.items())
        ]
        titles = {column.name: column.title for column in outcome.table.protocol.columns}
        picture = curve(points, x=titles[x], y=titles[found[0]], title=outcome.table.title)
        images.write_png(args.out / "curve.png", picture)
        drawn = ", curve.png"
    else:
        print("note: no perceptual column has a value, so there is no curve.png", file=sys.stderr)
    print(f"in {args.out}: curve.csv{drawn}, and all that evaluate.py run writes")
    return int(ExitCode.SOME_FAILED if outcome.failed else ExitCode.OK)
