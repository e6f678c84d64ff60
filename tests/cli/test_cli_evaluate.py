"""`evaluate.py` as its users meet it: numbers, files, exit codes, one-line errors."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture, write_tar
from support_evaluation import pixels_of, run, write_network, write_pictures

from lit_restore.evaluation.metrics import psnr, ssim
from lit_restore.evaluation.rows import TIMING
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.networks import UNet, apply_padded
from lit_restore.seeding import torch_generator
from lit_restore.weights import load_exported, save_exported

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a", "sub/b", "c"], 27, 30)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "net.safetensors")


def rows_of(out: Path, **wanted: str) -> list[dict[str, str]]:
    rows = csv.DictReader((out / "rows.csv").read_text().splitlines())
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def error_of(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 2) -> str:
    capsys.readouterr()
    assert run(*words) == code
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, printed
    return printed.removeprefix("error: ").rstrip("\n")


# run ----------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_definitions(data: Path, network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["run", "--protocol", "denoise", "--data", data, "--seeds", "0,7"]
    assert run(*words, "--ckpt", network, "--baselines", "noisy,tv-chambolle", "--out", out) == 0
    from skimage.restoration import denoise_tv_chambolle

    net = load_exported(network)
    clean = pixels_of(data / "sub" / "b.png")
    x = from_pixels(clean)
    for seed in (0, 7):
        for sigma in (15, 25, 50):
            noise = torch.randn(x.shape, generator=torch_generator(seed, "sub/b", "noise"))
            noisy = x + sigma / 255 * noise
            with torch.inference_mode():
                restored = apply_padded(net, noisy, torch.tensor([sigma / 255]))
            tv = denoise_tv_chambolle(
                noisy[0].permute(1, 2, 0).double().numpy(), weight=0.12, channel_axis=-1
            )
            tv = torch.from_numpy(tv).permute(2, 0, 1)[None]
            for name, output in (("noisy", noisy), ("net", restored), ("tv-chambolle-0.12", tv)):
                where = {"key": "sub/b", "seed": str(seed), "sigma": repr(float(sigma))}
                (row,) = rows_of(out, method=name, **where)
                pixels = to_uint8(output)[0]
                assert (pixels_of(out / row["png"]) == pixels).all()
                assert float(row["psnr_rgb_b0"]) == psnr(pixels, clean)
                assert float(row["ssim_rgb_b0"]) == ssim(pixels, clean)
                assert (row["width"], row["height"]) == ("30", "27")
                assert row["nfe"] == ("1" if name == "net" else "")
    assert len(rows_of(out)) == 3 * 2 * 3 * 11


def test_table_shows_the_best_total_variation_of_all_candidates(
    data: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["run", "--protocol", "denoise-25", "--data", data, "--baselines", "noisy,tv-chambolle"]
    assert run(*words, "--ckpt", f"ours={network}", "--out", out) == 0
    means = {
        method: np.mean([float(r["psnr_rgb_b0"]) for r in rows_of(out, method=method)])
        for method in {row["method"] for row in rows_of(out)}
    }
    candidates = {m: value for m, value in means.items() if m.startswith("tv-")}
    assert len(candidates) == 9
    best = max(candidates, key=lambda m: candidates[m])
    table = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    weight = best.removeprefix("tv-chambolle-")
    assert [line["method"] for line in table] == [
        "noisy",
        f"tv-chambolle (weight {weight})",
        "ours",
    ]
    for line, method in zip(table, ("noisy", best, "ours"), strict=True):
        assert float(line["psnr_rgb_b0"]) == pytest.approx(means[method], abs=1e-12)
    printed = capsys.readouterr().out
    assert f"tv-chambolle (weight {weight})" in printed
    assert json.loads((out / "run.json").read_text())["run_id"] in printed
    assert (out / "table.txt").read_text() in printed


def test_pictures_are_drawn_and_limited(data: Path, network: Path, tmp_path: Path) -> None:
    words = ["run", "--protocol", "denoise", "--data", data, "--ckpt", network]
    assert run(*words, "--out", tmp_path / "all") == 0
    drawn = [
        p.relative_to(tmp_path / "all").as_posix() for p in tmp_path.rglob("pictures/**/*.png")
    ]
    assert sorted(drawn)[:3] == [f"pictures/sigma15/{k}.png" for k in ("a", "c", "sub/b")]
    assert len(drawn) == 9
    assert pixels_of(tmp_path / "all" / "overview.png").shape[2] == 3
    assert run(*words, "--out", tmp_path / "none", "--pictures", "0") == 0
    assert not list((tmp_path / "none").rglob("pictures"))


def test_folder_archive_and_keys_give_the_same_rows(
    data: Path, network: Path, tmp_path: Path
) -> None:
    members = [
        (f"x/{p.relative_to(data).as_posix()}", p.read_bytes()) for p in sorted(data.rglob("*.png"))
    ]
    tar = write_tar(tmp_path / "x.tar", members)
    (tmp_path / "keys.txt").write_text("b\nc\na\n")
    words = ["run", "--protocol", "denoise-25", "--ckpt", network, "--pictures", "0"]
    assert run(*words, "--data", data, "--out", tmp_path / "1") == 0
    more = ["--data", tar, "--prefix", "x/", "--keys", tmp_path / "keys.txt"]
    assert run(*words, *more, "--out", tmp_path / "2") == 0
    for one, other in zip(rows_of(tmp_path / "1"), rows_of(tmp_path / "2"), strict=True):
        assert {k: v for k, v in one.items() if k not in TIMING} == {
            k: v for k, v in other.items() if k not in TIMING
        }
    ids = [json.loads((tmp_path / n / "run.json").read_text())["run_id"] for n in "12"]
    assert ids[0] == ids[1]


def test_batches_of_one_shape_give_nearly_the_same_pixels(
    data: Path, network: Path, tmp_path: Path
) -> None:
    write_pictures(data, ["wide"], 27, 50)
    words = ["run", "--protocol", "denoise-25", "--data", data, "--ckpt", network]
    for batch in ("1", "3"):
        assert run(*words, "--out", tmp_path / batch, "--batch", batch, "--pictures", "0") == 0
    assert len(rows_of(tmp_path / "3", error="")) == 8
    for row in rows_of(tmp_path / "1"):
        one, other = (pixels_of(tmp_path / b / row["png"]).astype(int) for b in ("1", "3"))
        assert np.abs(one - other).max() <= 1
        assert (one != other).mean() <= 1e-3
    assert {row["nfe"] for row in rows_of(tmp_path / "3", method="net")} == {"1"}


def test_what_cannot_be_read_is_a_failed_row_and_exit_code_3(
    data: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = encoded(picture(9, 40, 40), "jpg")
    (data / "cut.jpg").write_bytes(good[: len(good) // 2])
    (data / "empty.png").write_bytes(b"")
    (data / "grey.png").write_bytes(encoded(picture(3, 30, 30)[..., 0]))
    rgba = np.concatenate([picture(4), np.full((40, 48, 1), 100, np.uint8)], -1)
    (data / "glass.png").write_bytes(encoded(rgba))
    out = tmp_path / "out"
    words = ["run", "--protocol", "denoise-25", "--data", data, "--ckpt", network, "--out", out]
    assert run(*words) == 3
    printed = capsys.readouterr()
    reasons = {
        "cut": "not a readable JPEG, PNG or WebP (truncated)",
        "empty": "not a readable JPEG, PNG or WebP (empty file)",
        "glass": "is partly transparent; give a background colour",
        "grey": "is grey, the network takes RGB pictures; save it as RGB, or choose others with",
    }
    for key, reason in reasons.items():
        failed = rows_of(out, key=key, method="net")
        assert reason in failed[0]["error"]
        assert failed[0]["psnr_rgb_b0"] == failed[0]["png"] == ""
        assert f"failed: {key}: " in printed.err
    (grey,) = rows_of(out, key="grey", method="noisy")
    assert (grey["error"], grey["psnr_y_b0"]) == ("", grey["psnr_rgb_b0"])
    assert "3 of 7" in printed.out
    assert len(rows_of(out, method="net", error="")) == 3
    assert run(*words, "--resume") == 3
    assert run(*words[:-1], tmp_path / "white", "--background", "white") == 3
    assert rows_of(tmp_path / "white", key="glass", method="net")[0]["error"] == ""


def test_an_output_that_is_not_finite_is_a_failed_row(data: Path, tmp_path: Path) -> None:
    net = UNet(widths=[4], depths=[1])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1e30)
    save_exported(tmp_path / "bad.safetensors", net, info={"task": "denoiser", "profile": "raw"})
    words = ["run", "--protocol", "denoise-25", "--data", data]
    out = tmp_path / "out"
    assert run(*words, "--ckpt", tmp_path / "bad.safetensors", "--out", out) == 3
    assert {row["error"] for row in rows_of(out, method="bad")} == {
        "the output holds 2430 non-finite values"
    }
    assert rows_of(out, method="noisy", error="")


def test_pictures_smaller_than_a_window_have_a_blank_with_its_reason(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / "small", ["a"], 10, 40)
    words = ["run", "--protocol", "denoise-25", "--data", data, "--ckpt", network]
    assert run(*words, "--out", tmp_path / "out") == 0
    (row,) = rows_of(tmp_path / "out", method="net")
    assert row["ssim_rgb_b0"] == ""
    assert "ssim_rgb_b0: 40x10 (3 channels) is too small for border 0" in row["blanks"]
    assert float(row["psnr_rgb_b0"]) > 10
    assert "ssim_rgb_b0 left out for 2 of 2 rows" in " ".join(capsys.readouterr().out.split())


def test_quickstarts_baselines_are_the_measured_ones() -> None:
    from lit_restore.evaluation.baselines import noisy, tv_chambolle
    from lit_restore.evaluation.scoring import add_noise
    from lit_restore.evaluation.sources import open_source

    methods = [*noisy(), *tv_chambolle()[1:4]]
    found: dict[str, list[float]] = {}
    for item in open_source("skimage"):
        clean = item.picture().pixels
        x = add_noise(from_pixels(clean), 25 / 255, seed=0, key=item.key)
        for method in methods:
            output = to_uint8(method.restore(x, 25 / 255))[0]
            found.setdefault(method.name, []).append(psnr(output, clean))
    means = [float(np.mean(values)) for values in found.values()]
    assert means == pytest.approx([20.6388, 28.547, 28.994, 28.7805], abs=2e-3)


@pytest.mark.slow
def test_quickstart_without_a_network_has_the_measured_baselines(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("run", "--protocol", "quickstart", "--pictures", "0", "--out", out) == 0
    table = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [line["method"] for line in table] == ["noisy", "tv-chambolle (weight 0.08)"]
    assert float(table[0]["psnr_rgb_b0"]) == pytest.approx(20.6388, abs=1e-3)
    assert float(table[1]["psnr_rgb_b0"]) == pytest.approx(28.994, abs=2e-3)


def test_cbsd68_is_found_in_the_validation_pack() -> None:
    from lit_restore.evaluation.sources import open_source, read_keys

    if not (SHARED / "dev_val.tar").exists():
        pytest.skip("needs ../shared/data/dev_val.tar")
    keys = read_keys(SHARED / "cbsd68.txt")
    items = open_source(str(SHARED / "dev_val.tar"), prefix="bsd100/", keys=keys)
    assert len(items) == 68
    assert sorted(items[0].picture().pixels.shape) == [3, 321, 481]


WRONG = {
    "unknown protocol": (["--protocol", "denoise25"], "did you mean denoise-25?"),
    "protocol of compare": (["--protocol", "pixels"], "compare takes pictures that are restored"),
    "data of its own": (["--protocol", "quickstart"], "quickstart is defined on skimage"),
    "no such checkpoint": (["--ckpt", "nowhere.safetensors"], "no such file"),
    "two of one name": (["--ckpt", "{net}"], "two are called net; name them: NAME=PATH"),
    "taken name": (["--ckpt", "noisy={net}"], "the name noisy is taken"),
    "no such profile": (["--profile", "raw"], "holds profile ema, not raw"),
    "another task": (["--ckpt", "{other}"], "was trained for dimsum, a denoiser is needed"),
    "no such baseline": (["--baselines", "bm3d"], "there are noisy, tv-chambolle"),
    "keys not there": (["--keys", "{keys}"], "1 of 2 --keys are not there: zebra"),
    "no such prefix": (["--prefix", "x"], "nothing below --prefix x/; it has sub"),
    "batch of none": (["--batch", "0"], "at least 1"),
    "batch below none": (["--batch", "-3"], "--batch -3: at least 1"),
    "less than no pictures": (["--pictures", "-1"], "--pictures -1: is below 0; 0 draws none"),
    "no colour": (["--background", "whitish"], "--background: whitish is not a colour; use a name"),
    "empty colour": (["--background", ""], "is not a colour; use a name or #rrggbb: white, #fff"),
    "empty data": (["--data", ""], "argument --data: is empty"),
    "a picture as data": (["--data", "{data}/a.png"], "is one picture; --data takes its folder: "),
    "a network as data": (["--data", "{net}"], "; --data takes a folder of pictures or a tar arch"),
    "empty path": (["--ckpt", "x="], "--ckpt x=: names no path; give PATH or NAME=PATH"),
    "empty network": (["--ckpt", "{empty}"], "empty file; --ckpt takes a file of `lit-restore"),
    "picture as network": (["--ckpt", "{data}/a.png"], "; --ckpt takes a file of `lit-restore"),
    "folder as network": (["--ckpt", "{data}"], "holds no complete checkpoint; --ckpt takes a"),
    "keys of nothing": (["--keys", "{empty}"], "holds no keys (one a line)"),
    "keys of no name": (["--keys", ""], "argument --keys: is empty"),
    "out is a file": (["--out", "{net}"], "net.safetensors: is a file; --out names a folder"),
    "out below a file": (["--out", "{net}/x"], "net.safetensors: is a file; --out names a folder"),
    "out is empty": (["--out", ""], "argument --out: is empty"),
    "out is the data": (["--out", "{data}", "--resume"], "holds no run.json, so is no evaluation"),
    "out cannot be made": (
        ["--out", "/proc/x"],
        "/proc/x: cannot write (No such file or directory",
    ),
    "no UTF-8": (["--out", "o\udce9"], "'o\\udce9': is not UTF-8; rename it"),
    "batch of words": (["--batch", "two"], "invalid int value"),
    "seeds of words": (["--seeds", "a"], "a is no list of whole numbers"),
    "seed twice": (["--seeds", "1,1"], "1,1 names one twice"),
    "unknown option": (["--sigma", "25"], "unrecognized arguments: --sigma 25"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(
    case: str, data: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "net": network,
        "data": data,
        "empty": tmp_path / "empty",
        "other": write_network(tmp_path / "other.safetensors", task="dimsum"),
        "keys": tmp_path / "keys.txt",
    }
    places["keys"].write_text("a\nzebra\n")
    places["empty"].write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    words, message = WRONG[case]
    base = ["run", "--protocol", "denoise-25", "--data", data, "--ckpt", network]
    given = [word.format(**places) for word in words]
    out = tmp_path / "out"
    assert message in error_of(capsys, *base, "--out", out, *given)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_colour_picture_under_a_network_of_grey_says_what_to_do(
    data: Path, tmp_path: Path
) -> None:
    net = UNet(widths=[4], depths=[1], channels=1)
    save_exported(tmp_path / "g.safetensors", net, info={"task": "denoiser", "profile": "raw"})
    words = ["run", "--protocol", "denoise-25", "--data", data, "--out", tmp_path / "out"]
    assert run(*words, "--ckpt", tmp_path / "g.safetensors", "--pictures", "0") == 3
    assert {row["error"] for row in rows_of(tmp_path / "out", method="g")} == {
        "is RGB, the network takes grey pictures; save it as grey, or choose others with --keys"
    }


def test_a_name_that_is_no_text_is_refused(
    data: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(picture(0)))
    words = ["run", "--protocol", "denoise-25", "--data", data, "--ckpt", network]
    message = error_of(capsys, *words, "--out", tmp_path / "out")
    assert message.endswith("its name is not UTF-8; rename it")
    assert not (tmp_path / "out").exists()


def test_a_reader_who_goes_away_is_no_full_disk(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("lit_restore.cli.evaluate._tell", gone)
    monkeypatch.setattr("os.dup2", lambda *_: None)  # the test's own stdout stays
    words = ["run", "--protocol", "denoise-25", "--data", data, "--out", tmp_path / "out"]
    assert run(*words, "--pictures", "0") == 0


def test_a_machine_without_gpu_says_so(
    data: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = ["run", "--protocol", "denoise-25", "--data", data, "--ckpt", network]
    message = error_of(capsys, *words, "--out", tmp_path / "out", "--device", "cuda")
    assert message == "--device cuda: this machine has no usable GPU; use auto or cpu"


# compare ------------------------------------------------------------------------------------------


@pytest.fixture
def outputs(data: Path, network: Path, tmp_path: Path) -> Path:
    """An evaluation of `data` by run; its PNGs are what compare is given."""
    out = tmp_path / "run"
    words = ["run", "--protocol", "denoise-25", "--data", data, "--ckpt", network]
    assert run(*words, "--out", out, "--pictures", "0") == 0
    return out


def test_compare_measures_what_run_measured(outputs: Path, data: Path, tmp_path: Path) -> None:
    preds = [f"{m}={outputs}/png/{m}/sigma25/seed0" for m in ("net", "noisy")]
    out = tmp_path / "out"
    words = ["compare", "--pred", preds[0], "--pred", preds[1], "--target", data]
    assert run(*words, "--protocol", "denoise-25", "--out", out) == 0
    same = ("key", "method", "sigma", "psnr_rgb_b0", "ssim_rgb_b0", "psnr_y_b0", "ssim_y_b0")
    found, expected = (
        [[row[name] for name in same] for row in rows_of(folder)] for folder in (out, outputs)
    )
    assert found == expected
    assert len(list(out.glob("pictures/**/*.png"))) == 3


def test_compare_pairs_by_key_and_lists_what_is_alone(
    outputs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = tmp_path / "pred"
    shutil.copytree(outputs / "png" / "net" / "sigma25" / "seed0", pred)
    (pred / "a.png").rename(pred / "a_out.png")
    words = ["compare", "--pred", pred, "--target", data, "--protocol", "pixels", "--out"]
    message = error_of(capsys, *words, tmp_path / "out")
    assert "1 only in pred: a_out" in message
    assert "1 not in pred: a;" in message
    assert not (tmp_path / "out").exists()
    assert run(*words, tmp_path / "part", "--allow-missing") == 0
    assert "pixels v1, 2 of 3 pictures" in capsys.readouterr().out
    assert run(*words, tmp_path / "all", "--strip-suffix", "_out") == 0
    assert "pixels v1, 3 pictures" in capsys.readouterr().out
    (pred / "a_x.png").write_bytes((pred / "a_out.png").read_bytes())
    message = error_of(capsys, *words, tmp_path / "two", "--strip-suffix", "_(out|x)")
    assert "with one key 'a'" in message
    assert "no regular expression" in error_of(
        capsys, *words, tmp_path / "r", "--strip-suffix", "("
    )


def test_many_unpaired_pictures_are_listed_ten_a_side(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = write_pictures(tmp_path / "pred", [f"p{i:02d}" for i in range(15)], 12, 12)
    words = ["compare", "--pred", pred, "--target", data, "--protocol", "pixels", "--out"]
    message = error_of(capsys, *words, tmp_path / "out")
    assert "15 only in pred: p00, p01," in message
    assert "p09 and 5 more" in message


def test_sizes_that_differ_end_the_comparison(
    outputs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = tmp_path / "pred"
    shutil.copytree(outputs / "png" / "net" / "sigma25" / "seed0", pred)
    (pred / "c.png").write_bytes(encoded(picture(0, 27, 31)))
    words = ["compare", "--pred", pred, "--target", data, "--protocol", "pixels", "--out"]
    assert "c.png: is 31x27 RGB, the truth is 30x27 RGB" in error_of(
        capsys, *words, tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
    (pred / "c.png").write_bytes(encoded(picture(0, 27, 30)[..., 0]))
    message = error_of(capsys, *words, tmp_path / "out")
    assert "is 30x27 grey, the truth is 30x27 RGB; make them alike, or take both away" in message
    (pred / "c.png").write_bytes(b"oops")
    assert run(*words, tmp_path / "out") == 3
    assert "text" in rows_of(tmp_path / "out", key="c")[0]["error"]


def test_identical_pictures_are_counted_not_averaged(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--pred", f"same={data}", "--target", data, "--protocol", "pixels"]
    assert run(*words, "--out", tmp_path / "out") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "psnr_rgb_b0 left out for 3 of 3 rows, identical to the truth" in printed
    assert "0 of 3" in printed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstart", "makes its own pictures"),
        ("denoise", "compare one of them: denoise-15, denoise-25, denoise-50"),
    ],
)
def test_protocols_that_need_run_are_refused(
    name: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--pred", data, "--target", data, "--protocol", name]
    assert message in error_of(capsys, *words, "--out", tmp_path / "out")


WRONG_COMPARISONS = {
    "no colour": (["--background", "whitish"], "--background: whitish is not a colour; use a name"),
    "less than no pictures": (["--pictures", "-1"], "--pictures -1: is below 0; 0 draws none"),
    "out is a file": (["--out", "{file}"], "a.png: is a file; --out names a folder"),
    "out holds something": (["--out", "{data}"], "so is no evaluation; choose another --out"),
    "out is a comparison": (["--out", "{done}"], "done: exists; choose another --out"),
    "empty pred": (["--pred", ""], "--pred: names no path; give PATH or NAME=PATH"),
    "empty target": (["--target", ""], "argument --target: is empty"),
    "a picture as target": (["--target", "{file}"], "is one picture; --target takes its folder"),
    "cuts everything": (["--strip-suffix", ".*"], "data/a.png; cut less"),
}


@pytest.mark.parametrize("case", WRONG_COMPARISONS)
def test_a_wrong_comparison_is_one_line_and_leaves_nothing(
    case: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["compare", "--pred", f"p={data}", "--target", data, "--protocol", "pixels", "--out"]
    places = {"data": data, "file": data / "a.png", "done": tmp_path / "done"}
    assert run(*base, places["done"]) == 0
    before = sorted(tmp_path.rglob("*"))
    words, message = WRONG_COMPARISONS[case]
    given = [word.format(**places) for word in words]
    error = error_of(capsys, *base, tmp_path / "out", *given)
    assert message.format(**places) in error
    assert sorted(tmp_path.rglob("*")) == before


# protocols, and the door --------------------------------------------------------------------------


def test_protocols_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("protocols") == 0
    listed = capsys.readouterr().out
    for name in ("quickstart", "denoise", "denoise-15", "denoise-25", "denoise-50"):
        assert f"\n{name} " in f"\n{listed}"
    assert run("protocols", "quickstart") == 0
    explained = capsys.readouterr().out
    assert "not clipped" in explained
    assert "columns: PSNR RGB b0, SSIM RGB b0, PSNR Y b0, SSIM Y b0" in explained
    assert "did you mean quickstart?" in error_of(capsys, "protocols", "quickstrat")


def test_the_door_opens() -> None:
    done = subprocess.run(
        [sys.executable, "evaluate.py", "protocols", "quickstrat"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr == "error: --protocol quickstrat: no such protocol; did you mean quickstart?\n"
    )
