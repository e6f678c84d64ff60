"""Tables of restorations: each number is that of its PNG, and each PNG that of its networks."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture
from support_evaluation import pixels_of, run, write_pictures
from support_restoration import EDSR_OPTIONS, SCALE
from support_restoring import (
    RESTORE,
    decibels,
    evaluate,
    halved,
    hide_weights,
    networks,
    rows_of,
)

from lit_restore.evaluation.metrics import ssim
from lit_restore.evaluation.restore_methods import Networks, methods_of
from lit_restore.inverse import PosteriorOptions
from lit_restore.io import images
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.networks import EDSR, FusionNet, UNet
from lit_restore.ops.resize import imresize
from lit_restore.sampling.restoration import RestoreOptions, restore_images
from lit_restore.seeding import torch_generator
from lit_restore.weights.fused import load_fusion

HEIGHT, WIDTH = 27, 31
KEYS = ("a", "sub/b")


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_weights(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks and two pictures of odd sides; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    networks(folder)
    write_pictures(folder / "data", list(KEYS), HEIGHT, WIDTH)
    return folder


@pytest.fixture(scope="module")
def fusion(made: Path) -> Path:
    return made / "nets" / "fusion.safetensors"


@pytest.fixture(scope="module")
def data(made: Path) -> Path:
    return made / "data"


# What is measured ---------------------------------------------------------------------------------


def test_rows_are_those_of_the_networks_on_the_rounded_cut_picture(
    data: Path, fusion: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = (*RESTORE, "--data", data, "--ckpt", f"ours={fusion}", "--tau", "5,2", "--seeds", "0,7")
    assert evaluate(out, *words) == 0
    model, unrounded = load_fusion(fusion), 0
    for key in KEYS:
        clean = pixels_of(data / f"{key}.png")[: HEIGHT - 1, : WIDTH - 1]
        degraded = halved(clean)
        expected = {("bicubic", 0): imresize(degraded, SCALE)}
        with torch.no_grad():
            expected["ours-restorer", 0] = model.restorer(degraded)
            before = model.restorer(halved(clean, rounded=False))
        unrounded += int((to_uint8(before) != to_uint8(expected["ours-restorer", 0])).sum())
        for tau in (2, 5):
            for seed in (0, 7):
                options = RestoreOptions(posterior=PosteriorOptions(tau=tau), seed=seed)
                sample = restore_images(model, degraded, options, [key]).images
                expected[f"ours-tau{tau}", seed] = sample
        assert {(row["method"], int(row["seed"])) for row in rows_of(out, key=key)} == set(expected)
        for (method, seed), output in expected.items():
            (row,) = rows_of(out, key=key, method=method, seed=str(seed))
            found = pixels_of(out / row["png"])
            assert (found == to_uint8(output)[0]).all(), (method, seed)
            assert float(row["psnr_rgb_b0"]) == pytest.approx(decibels(found, clean), rel=1e-12)
            assert float(row["ssim_rgb_b0"]) == ssim(found, clean)
            assert (row["width"], row["height"]) == (str(WIDTH - 1), str(HEIGHT - 1))
            evaluations = {"bicubic": "", "ours-restorer": "1", "ours-tau2": "3", "ours-tau5": "6"}
            assert row["nfe"] == evaluations[method]
            assert (row["seconds"] == "") == (method == "bicubic")
    assert unrounded > 0  # else the test would not see whether the input is in 8 bits


def test_the_table_has_the_restorer_first_and_means_over_seeds_and_pictures(
    data: Path, fusion: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "5,2", "--seeds", "0,7")
    assert evaluate(out, *words) == 0
    lines = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    names = ["bicubic", "fusion-restorer", "fusion-tau5", "fusion-tau2"]
    assert [line["method"] for line in lines] == names
    assert [line["nfe"] for line in lines] == ["", "1", "6", "3"]
    for line in lines:
        values = [float(row["psnr_rgb_b0"]) for row in rows_of(out, method=line["method"])]
        assert len(values) == (4 if "tau" in line["method"] else 2)
        assert float(line["psnr_rgb_b0"]) == pytest.approx(np.mean(values), rel=1e-12)
        assert (line["n"], line["of"]) == ("2", "2")


def test_evaluations_are_those_that_were_made(data: Path, fusion: Path, tmp_path: Path) -> None:
    calls: Counter[str] = Counter()

    def count(module: torch.nn.Module, given: object, output: object) -> None:
        if isinstance(module, EDSR | UNet | FusionNet) and "lit" in type(module).__module__:
            calls[type(module).__name__] += 1

    words = (*RESTORE, "--data", data, "--prefix", "sub", "--ckpt", fusion)
    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        # Every network is called once more for its cost, the restorer in all three rows.
        assert evaluate(tmp_path / "out", *words, "--tau", "2,9", "--steps", "4") == 0
    finally:
        handle.remove()
    assert calls == {"EDSR": 1 + 3, "UNet": 1 + 2 + 4, "FusionNet": 1 + 2 + 4}
    nfe = {row["method"]: row["nfe"] for row in rows_of(tmp_path / "out")}
    # There are no more steps than tau.
    assert nfe == {"bicubic": "", "fusion-restorer": "1", "fusion-tau2": "3", "fusion-tau9": "5"}


def test_tau_0_is_the_restorer_s_row_and_no_other(data: Path, fusion: Path, tmp_path: Path) -> None:
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "0,2", "--seeds", "3,4")
    assert evaluate(tmp_path / "out", *words) == 0
    found = Counter((row["method"], row["seed"]) for row in rows_of(tmp_path / "out"))
    drawn = {("fusion-tau2", seed): 2 for seed in "34"}
    assert found == {("bicubic", "3"): 2, ("fusion-restorer", "3"): 2, **drawn}


def test_a_restoration_network_alone_is_one_row_that_draws_nothing(
    data: Path, made: Path, fusion: Path, tmp_path: Path
) -> None:
    restorer = made / "nets" / "restorer.safetensors"
    words = (*RESTORE, "--data", data, "--seeds", "0,1")
    assert evaluate(tmp_path / "a", *words, "--ckpt", f"edsr={restorer}") == 0
    assert evaluate(tmp_path / "b", *words, "--ckpt", fusion, "--tau", "0") == 0
    one, other = rows_of(tmp_path / "a", method="edsr"), rows_of(tmp_path / "b")[1::2]
    assert [row["seed"] for row in one] == ["0", "0"]
    assert [row["nfe"] for row in one] == ["1", "1"]
    assert [row["method"] for row in other] == 2 * ["fusion-restorer"]
    assert [row["sha256"] for row in one] == [row["sha256"] for row in other]


def test_degradations_that_draw_draw_by_key_the_same_for_every_seed(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", ["x", "y"], 20, 18)
    noise = "{class_path: GaussianNoise, init_args: {sigma_min: 0.1, sigma_max: 0.1}}"
    words = ("--protocol", "restore", "--degradation", noise, "--data", data, "--seeds", "5")
    assert evaluate(tmp_path / "out", *words) == 0
    for key in ("x", "y"):
        (row,) = rows_of(tmp_path / "out", key=key)
        assert (row["method"], row["nfe"]) == ("degraded", "")  # of scale 1: nothing to enlarge
        clean = pixels_of(data / f"{key}.png")
        image = from_pixels(clean)[0]
        generator = torch_generator(0, key, "degradation")
        torch.rand((), generator=generator)  # of the level
        noise = torch.randn(image.shape, generator=generator)
        noisy = to_uint8((image + 0.1 * noise)[None])[0]
        assert (pixels_of(tmp_path / "out" / row["png"]) == noisy).all()
        assert float(row["psnr_rgb_b0"]) == pytest.approx(decibels(noisy, clean), rel=1e-12)


def test_sr_x4_measures_inside_the_border_in_rgb_and_y(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", ["x"], 41, 46)
    assert evaluate(tmp_path / "out", "--protocol", "sr-x4", "--data", data) == 0
    (row,) = rows_of(tmp_path / "out")
    assert (row["width"], row["height"]) == ("44", "40")
    clean = pixels_of(data / "x.png")[:40, :44]
    found = pixels_of(tmp_path / "out" / row["png"])
    small = imresize(from_pixels(np.ascontiguousarray(clean)), 0.25)
    small = (255 * small.clamp(0, 1) + 0.5).floor() / 255
    assert (found == to_uint8(imresize(small, 4))[0]).all()
    inner = (slice(4, -4), slice(4, -4))
    assert float(row["psnr_rgb_b4"]) == pytest.approx(decibels(found[inner], clean[inner]))
    weights = np.array([65.481, 128.553, 24.966]) / 255
    luma = decibels(found[inner] @ weights, clean[inner] @ weights)
    assert float(row["psnr_y_b4"]) == pytest.approx(luma, rel=1e-9)


# What stands below the table ----------------------------------------------------------------------


def test_the_cost_of_the_networks_stands_below_the_table(
    data: Path, made: Path, fusion: Path, tmp_path: Path
) -> None:
    words = ("--ckpt", fusion, "--tau", "2", "--ckpt", made / "nets" / "restorer.safetensors")
    assert evaluate(tmp_path / "out", *RESTORE, "--data", data, *words) == 0
    width, depth = EDSR_OPTIONS["width"], EDSR_OPTIONS["depth"]
    small = 3 * width + (2 * depth + 1) * width**2 + width * SCALE**2 * width
    once = 9 * ((256 // SCALE) ** 2 * small + 256**2 * 3 * width) / 1e9
    text = " ".join((tmp_path / "out" / "table.txt").read_text().split())
    assert "fusion: restorer 0.00 M parameters, denoiser 0.00 M parameters, fusion 0.00 M" in text
    assert f"GMAC for each evaluation of denoiser and fusion and {once:.3g} once, at 256" in text
    assert f"restorer: EDSR, 0.00 M parameters, {once:.3g} GMAC at 256x256" in text


def test_a_network_and_the_image_that_tells_its_cost_are_on_one_device(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: False)  # knows no such device
    there = Networks(device=torch.device("meta"))
    restorer = str(made / "nets" / "restorer.safetensors")
    seen: list[str] = []

    def note(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen.extend(image.device.type for image in given)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        (method,) = methods_of(restorer, (2,), RestoreOptions(), there)
    finally:
        handle.remove()
    assert "GMAC at 256x256" in method.about
    assert set(seen) == {"meta"}


def test_columns_without_weights_are_blank_and_say_why(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "out", *RESTORE, "--data", data) == 0
    rows = rows_of(tmp_path / "out")
    assert [(row["lpips-alex"], row["niqe"]) for row in rows] == 2 * [("", "")]
    assert all("niqe: needs niqe_pris_params.npz" in row["blanks"] for row in rows)
    printed = " ".join(capsys.readouterr().out.split())
    assert "* lpips-alex is blank, needs lpips-alexnet-" in printed
    assert f"looked in {tmp_path}/no-weights" in printed


def test_pictures_are_drawn_of_every_method(data: Path, fusion: Path, tmp_path: Path) -> None:
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2", "--pictures", "1")
    assert evaluate(tmp_path / "out", *words) == 0
    drawn = sorted((tmp_path / "out" / "pictures").rglob("*.png"))
    assert [path.name for path in drawn] == ["a.png"]
    assert evaluate(tmp_path / "two", *RESTORE, "--data", data, "--pictures", "1") == 0
    both = pixels_of(drawn[0]), pixels_of(tmp_path / "two" / "pictures" / "a.png")
    assert both[0].shape[1] > both[1].shape[1]  # four panels, and two


def test_the_protocols_say_what_their_pictures_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("protocols", "sr-x4") == 0
    printed = capsys.readouterr().out
    assert "pictures are cut to multiples of 4 first" in printed
    assert "columns: PSNR RGB b4, SSIM RGB b4, PSNR Y b4, SSIM Y b4, LPIPS-Alex, NIQE" in printed


# Pictures that fail -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0", "z"])
def test_pictures_that_cannot_be_used_are_rows_with_reasons_first_or_last(
    name: str, fusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / "data", ["m"], 20, 20)
    (data / f"{name}-damaged.png").write_bytes(encoded(picture(1))[:90])
    (data / f"{name}-thin.png").write_bytes(encoded(picture(1, 1, 20)))
    assert evaluate(tmp_path / "out", *RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2") == 3
    for row in rows_of(tmp_path / "out"):
        if row["key"] == "m":
            assert (row["error"], bool(row["psnr_rgb_b0"])) == ("", True)
            continue
        assert row["psnr_rgb_b0"] == row["png"] == ""
        told = "is 20x1, too small for" if "thin" in row["key"] else f"{name}-damaged.png: "
        assert told in row["error"]
    assert len(rows_of(tmp_path / "out")) == 9
    printed = capsys.readouterr()
    assert f"failed: {name}-thin: {data}/{name}-thin.png: is 20x1" in printed.err
    assert printed.out.count("1 of 3") == 3


def test_a_grey_picture_goes_through_networks_of_colours_as_one(
    fusion: Path, tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / "data", ["colour"], 20, 20)
    grey = picture(3, 20, 20)[..., 0]
    (data / "grey.png").write_bytes(encoded(grey))
    assert evaluate(tmp_path / "out", *RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2") == 0
    (row,) = rows_of(tmp_path / "out", key="grey", method="bicubic")
    enlarged = to_uint8(imresize(halved(grey[..., None]), SCALE))[0]
    assert float(row["psnr_rgb_b0"]) == pytest.approx(decibels(enlarged, grey[..., None]))
    for method in ("fusion-restorer", "fusion-tau2"):
        (row,) = rows_of(tmp_path / "out", key="grey", method=method)
        found = images.read_picture(tmp_path / "out" / row["png"]).pixels
        assert found.shape == (20, 20, 1)
        assert float(row["psnr_rgb_b0"]) == pytest.approx(decibels(found, grey[..., None]))


def test_an_output_of_another_size_is_a_row_with_its_reason(
    data: Path, fusion: Path, tmp_path: Path
) -> None:
    words = ("--protocol", "sr-x4", "--other-degradation", "--data", data, "--ckpt", fusion)
    assert evaluate(tmp_path / "out", *words, "--tau", "2") == 3
    errors = {row["method"]: row["error"] for row in rows_of(tmp_path / "out")}
    told = "the output is 14x12, the truth 28x24"
    assert errors == {"bicubic": "", "fusion-restorer": told, "fusion-tau2": told}
