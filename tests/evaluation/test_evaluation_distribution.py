"""Distances between sets, on the closed forms and tables of spec evaluation.md §3."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.evaluation import neighbours as neighbours_module
from lit_restore.evaluation.distribution import SET_METRICS, DistributionScore
from lit_restore.evaluation.features import PixelFeatures
from lit_restore.evaluation.frechet import (
    Moments,
    fd_infinity,
    frechet_distance,
    load_moments,
    save_moments,
)
from lit_restore.evaluation.kernel_distance import _kernel, kernel_distance, squared_discrepancy
from lit_restore.evaluation.neighbours import neighbours
from lit_restore.io.tensors import save_tensors


def normal(seed: int, count: int, d: int, *, mean: float = 0.0, sd: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + sd * torch.randn(count, d, generator=generator, dtype=torch.float64)


def law(mean: Tensor, covariance: Tensor) -> Moments:
    """As if estimated from 101 features."""
    return Moments(101, mean.double(), covariance.double() * 100)


# Fréchet ------------------------------------------------------------------------------------------


def rotated(d: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """A rotation, and two spectra."""
    spectrum = torch.linspace(0.5, 2, d, dtype=torch.float64)
    return torch.linalg.qr(normal(0, d, d)).Q, spectrum, spectrum.flip(0)


def test_fd_of_two_normal_laws_is_the_closed_form() -> None:
    q, one, two = rotated()
    a = law(torch.zeros(64), q @ one.diag() @ q.T)
    b = law(torch.full((64,), 0.1, dtype=torch.float64), q @ two.diag() @ q.T)
    assert frechet_distance(a, b) == pytest.approx(11.186431588, abs=1e-9)
    by_hand = 0.64 + float((one.sqrt() - two.sqrt()).square().sum())
    assert frechet_distance(b, a) == pytest.approx(by_hand, abs=1e-9)


def test_fd_of_laws_that_do_not_commute_is_scipys() -> None:
    from scipy.linalg import sqrtm

    a, b = Moments.of(normal(1, 40, 6) @ normal(2, 6, 6)), Moments.of(normal(3, 40, 6))
    s, t = a.covariance.numpy(), b.covariance.numpy()
    expected = np.trace(s + t - 2 * sqrtm(s @ t).real) + float((a.mean - b.mean).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_fd_is_zero_for_a_set_and_itself_and_blind_to_rotation() -> None:
    x, y = normal(0, 200, 32), normal(1, 200, 32, mean=0.2)
    q = torch.linalg.qr(normal(2, 32, 32)).Q
    a, b = Moments.of(x), Moments.of(y)
    assert frechet_distance(a, a) <= 1e-12 * float(a.covariance.trace())
    turned = frechet_distance(Moments.of(x @ q), Moments.of(y @ q))
    assert turned == pytest.approx(frechet_distance(a, b), abs=1e-8)
    few = Moments.of(x[:16])  # singular
    assert 0 <= frechet_distance(few, few) <= 1e-7 * float(few.covariance.trace())


def test_fd_of_equal_laws_is_too_high_by_the_known_bias() -> None:
    d, n = 64, 512
    values = [
        frechet_distance(Moments.of(normal(k, n, d)), Moments.of(normal(100 + k, n, d)))
        for k in range(12)
    ]
    assert np.mean(values) == pytest.approx(d * (d + 1) / (2 * n) + 2 * d / n, rel=0.05)


def test_fd_at_infinity_takes_the_bias_away() -> None:
    """Spec: truth 1.280, at 4096 1.842, extrapolated 1.231."""
    x, y = normal(0, 4096, 64), normal(1, 4096, 64, mean=math.sqrt(0.02))
    plain = frechet_distance(Moments.of(x), Moments.of(y))
    assert plain == pytest.approx(1.28 + 0.54, abs=0.12)
    extrapolated = fd_infinity(x, y, seed=3)
    assert extrapolated == pytest.approx(1.28, abs=0.15)
    assert fd_infinity(x, y, seed=3) == extrapolated != fd_infinity(x, y, seed=4)


# Moments ------------------------------------------------------------------------------------------


def test_moments_are_numpys_however_they_were_gathered() -> None:
    x = normal(0, 32, 5) @ normal(1, 5, 5) + 3
    streamed = Moments.empty(5)
    for part in (x[:1], x[1:1], x[1:20], x[20:]):
        streamed.update(part)
    ranks = [Moments.empty(5), Moments.of(x[:7]), Moments.of(x[7:])]
    merged = Moments.from_states([rank.state() for rank in ranks])
    for moments in (Moments.of(x), streamed, merged):
        assert moments.count == 32
        torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-12, atol=0)
        expected = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
        torch.testing.assert_close(moments.covariance, expected, rtol=1e-12, atol=1e-12)


def test_moments_do_not_cancel_where_means_are_large() -> None:
    x = normal(0, 500, 4)
    far = Moments.empty(4)
    for part in (x + 1e7).chunk(5):
        far.update(part)
    expected = Moments.of(x).covariance
    torch.testing.assert_close(far.covariance, expected, rtol=1e-6, atol=1e-7)
    naive = ((x + 1e7).T @ (x + 1e7) - 500 * torch.outer(far.mean, far.mean)) / 499
    assert (naive - expected).abs().max() > 1e-3


def test_moments_survive_the_disk_and_belong_to_one_network(tmp_path: Path) -> None:
    moments = Moments.of(normal(0, 20, 3))
    path = tmp_path / "reference.safetensors"
    save_moments(path, moments, "pixels")
    read = load_moments(path, "pixels")
    assert read.count == 20
    assert torch.equal(read.mean, moments.mean)
    assert torch.equal(read.scatter, moments.scatter)
    with pytest.raises(UserError, match="moments of pixels, not of squeezenet"):
        load_moments(path, "squeezenet")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"reference\.safetensors"):
        load_moments(path, "pixels")
    with path.open("wb") as file:
        save_tensors(file, {"weight": torch.zeros(2)})
    with pytest.raises(UserError, match="holds no moments"):
        load_moments(path, "pixels")


def test_fd_of_what_is_not_finite_is_not_a_perfect_score() -> None:
    good, bad = (Moments.of(normal(seed, 20, 3)) for seed in (0, 1))
    bad.scatter[0, 0] = math.nan
    for pair in ((good, bad), (bad, good)):
        assert math.isnan(frechet_distance(*pair))


def test_a_covariance_of_one_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(Moments.of(normal(0, 1, 3)), Moments.of(normal(0, 9, 3)))


# Kernel -------------------------------------------------------------------------------------------


def expected_kernel(d: int, m1: float, m2: float, v1: float, v2: float) -> float:
    """E (x·y/d + 1)³ for independent isotropic normals (spec §3)."""
    dot, one, two = d * m1 * m2, d * m1**2, d * m2**2
    u, q = 1 + dot / d, (v1 * v2 * d + v1 * two + v2 * one) / d**2
    return u**3 + 3 * u * q + 6 * v1 * v2 * dot / d**3


def test_kernel_distance_of_two_normal_laws_is_the_closed_form() -> None:
    truth = (
        expected_kernel(16, 0.3, 0.3, 1, 1)
        + expected_kernel(16, 0.6, 0.6, 1.5, 1.5)
        - 2 * expected_kernel(16, 0.3, 0.6, 1, 1.5)
    )
    assert truth == pytest.approx(0.740384, abs=1e-6)
    values = [
        squared_discrepancy(
            normal(k, 300, 16, mean=0.3), normal(900 + k, 300, 16, mean=0.6, sd=1.5**0.5)
        )
        for k in range(200)
    ]
    assert abs(np.mean(values) - truth) < 4 * np.std(values, ddof=1) / 200**0.5


def test_kernel_distance_of_equal_laws_is_zero_on_average_without_the_diagonal() -> None:
    pairs = [(normal(k, 100, 16), normal(900 + k, 100, 16)) for k in range(200)]
    values = [squared_discrepancy(x, y) for x, y in pairs]
    error = np.std(values, ddof=1) / 200**0.5
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0
    biased = [
        float(_kernel(x, x).mean() + _kernel(y, y).mean() - 2 * _kernel(x, y).mean())
        for x, y in pairs
    ]
    assert np.mean(biased) > 20 * error


def test_kernel_distance_is_a_mean_over_seeded_subsets_times_1000() -> None:
    x, y = normal(0, 90, 4), normal(1, 60, 4, mean=0.5)
    found = kernel_distance(x, y, subsets=50, size=40, seed=1)
    assert (found.subsets, found.size) == (50, 40)
    assert found.sd > 0
    whole = kernel_distance(x[:60], y)
    assert (whole.subsets, whole.size) == (1, 60)
    assert whole.mean == 1000 * squared_discrepancy(x[:60], y)
    assert math.isnan(whole.sd)
    full = 1000 * squared_discrepancy(x, y)
    assert abs(found.mean - full) < 5 * found.sd / 50**0.5
    assert kernel_distance(x, y, subsets=50, size=40, seed=1) == found
    assert kernel_distance(x, y, subsets=50, size=40, seed=2) != found


# Neighbours ---------------------------------------------------------------------------------------

TABLE = {
    "same": ((0.0, 1.0), (0.894, 0.898, 1.00, 0.969)),
    "half": ((0.0, 0.5), (0.997, 0.184, 1.74, 0.704)),
    "double": ((0.0, 2.0), (0.186, 0.996, 0.104, 0.319)),
    "shifted": ((10.0, 1.0), (0, 0, 0, 0)),
}


def four(x: Tensor, y: Tensor) -> tuple[float, float, float, float]:
    found = neighbours(x, y)
    return found.precision, found.recall, found.density, found.coverage


@pytest.mark.parametrize("name", TABLE)
def test_neighbours_are_the_tables(name: str) -> None:
    (mean, sd), expected = TABLE[name]
    draws = [four(normal(k, 2000, 8), normal(50 + k, 2000, 8, mean=mean, sd=sd)) for k in range(2)]
    for value, truth, tolerance in zip(
        np.mean(draws, 0), expected, (0.03, 0.03, 0.1, 0.03), strict=True
    ):
        assert value == pytest.approx(truth, abs=tolerance)


def test_a_member_that_counts_as_its_own_neighbour_leaves_the_table() -> None:
    x, y = normal(0, 2000, 8), normal(50, 2000, 8)
    assert neighbours(x, y, k=2, k_density=4).precision < 0.894 - 0.03


def test_neighbours_by_hand() -> None:
    """On a line; k = 1: balls of radius 1 around 0, 1 and of 2 around 3."""
    real = torch.tensor([[0.0], [1.0], [3.0]])
    fake = torch.tensor([[-0.5], [4.5], [9.0]])  # radii 5, 4.5, 4.5
    found = neighbours(real, fake, k=1, k_density=1)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == 1
    assert found.density == pytest.approx(2 / 3)
    assert found.coverage == pytest.approx(2 / 3)


def test_neighbours_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(0, 150, 6), normal(1, 130, 6, mean=0.3)
    whole = neighbours(x, y)
    monkeypatch.setattr(neighbours_module, "_CHUNK_NUMBERS", 1000)
    assert neighbours(x, y) == whole
    with pytest.raises(ValueError, match="more than 5"):
        neighbours(x, y[:5])


# Score --------------------------------------------------------------------------------------------


def images(seed: int, count: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + (1 - shift) * torch.rand(count, 3, 8, 8, generator=generator)


def test_score_of_two_ranks_with_a_padding_sampler_is_that_of_one_process() -> None:
    real, fake = images(0, 41), images(1, 41, shift=0.2)
    alone = DistributionScore(PixelFeatures(), SET_METRICS, kid_subsets=3)
    alone.update_real(real)
    alone.update_fake(fake)
    states = []
    for order in ([*range(0, 41, 2)], [*range(1, 41, 2), 0]):  # 41 over 2 ranks: one is repeated
        rank = DistributionScore(PixelFeatures(), SET_METRICS, kid_subsets=3)
        for part in (order[:5], order[5:]):
            rank.update_real(real[part], torch.tensor(part))
            rank.update_fake(fake[part], torch.tensor(part))
        states.append(rank.state())
    rank.merge(states)
    assert rank.compute() == alone.compute()
    assert rank.compute()["n_real"] == 41
    assert set(rank.compute()) == {f"{m}_pixels" for m in SET_METRICS} | {"n_real", "n_fake"}


def test_score_without_positions_keeps_every_image_in_the_order_of_ranks() -> None:
    score = DistributionScore(PixelFeatures(), ("fd", "kid"))
    score.update_real(images(0, 6))
    score.update_fake(images(1, 6))
    merged = DistributionScore(PixelFeatures(), ("fd", "kid"))
    merged.merge([score.state(), score.state()])
    assert merged.compute()["n_fake"] == 12
    twice = merged.state()["fake_features"]
    assert torch.equal(twice[:6], twice[6:])


def test_score_rises_with_the_distance_and_keeps_the_real_side() -> None:
    score = DistributionScore(PixelFeatures())
    score.update_real(images(0, 60))
    found = []
    for shift in (0.0, 0.3, 0.6):
        score.reset(keep_real=True)
        score.update_fake(images(1, 60, shift=shift))
        found.append(score.compute())
    for name in ("fd_pixels", "kid_pixels"):
        assert found[0][name] < found[1][name] < found[2][name]
    assert found[0]["precision_pixels"] > 0.5 > 0.1 > found[2]["precision_pixels"]
    assert found[2]["n_real"] == 60


def test_score_says_what_too_few_images_leave_blank() -> None:
    score = DistributionScore(PixelFeatures(), SET_METRICS)
    score.update_real(images(0, 5))
    assert score.compute() == {"n_real": 5, "n_fake": 0}
    score.update_fake(images(1, 5))
    assert set(score.compute()) == {"fd_pixels", "kid_pixels", "n_real", "n_fake"}
    assert score.blanks["recall"] == "needs 6 images of each kind"
    with pytest.raises(UserError, match="fid: no such metric"):
        DistributionScore(PixelFeatures(), ("fid",))  # type: ignore[arg-type]


def test_what_is_gathered_is_as_large_as_what_was_added() -> None:
    score = DistributionScore(PixelFeatures())
    for start in (0, 5):
        score.update_real(torch.rand(5, 3, 16, 16), torch.arange(start, start + 5))
    state = score.state()
    assert state["real_positions"].tolist() == list(range(10))
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in state.values())
