"""LPIPS and DISTS: the equations in float64, torchvision's networks, published values."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from test_evaluation_metrics import g2
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.evaluation.perceptual.backbones import (
    ALEXNET,
    VGG16,
    Backbone,
    Plan,
    as_stored,
    features_only,
    fill_in_order,
    open_backbone,
)
from lit_restore.evaluation.perceptual.dists import CHANNELS, DISTS, L2Pool, _compared, open_dists
from lit_restore.evaluation.perceptual.lpips import LPIPS, NETS, open_lpips
from lit_restore.evaluation.perceptual.weights import MissingWeights, WeightFolders
from lit_restore.io import fs
from lit_restore.io.tensors import save_tensors
from lit_restore.io.torch_files import load_foreign_weights

PLANS = {"alex": ALEXNET, "vgg": VGG16}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_net(plan: Plan, pool: nn.Module | None = None) -> Backbone:
    """Seeded weights whose activations keep their size."""
    generator = torch.Generator().manual_seed(1)
    net = Backbone(plan, pool)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                fan = layer.weight[0].numel()
                layer.weight.normal_(0, math.sqrt(2 / fan), generator=generator)
                layer.bias.normal_(0, 0.05, generator=generator)
    return net.eval().requires_grad_(False)


def random_lpips(plan: Plan) -> LPIPS:
    return LPIPS(random_net(plan), [draw(c, seed=k) for k, c in enumerate(plan.channels)])


def published(opener, *args):
    """With the weights of $LIT_RESTORE_WEIGHTS, if they are there."""
    try:
        return opener(*args, WeightFolders.of())
    except MissingWeights as error:
        pytest.skip(str(error))


# The networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_convolutions_are_torchvisions(plan: Plan) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, plan.name.lower())(weights=None).features
    theirs = theirs.to_empty(device="cpu").eval()
    net = random_net(plan)
    # Their names, and a classifier that is left out.
    own = iter(as_stored(net).values())
    stored = {f"features.{name}": next(own) for name in theirs.state_dict()}
    theirs.load_state_dict({n.removeprefix("features."): t for n, t in stored.items()})
    other = Backbone(plan)
    stored["classifier.6.bias"] = torch.zeros(3)
    fill_in_order(other, features_only(stored), where=Path("x.pth"))
    x = draw(1, 3, 72, 70) - 0.5
    last, expected = None, []
    with torch.no_grad():
        y = x
        for layer in theirs:
            if isinstance(layer, nn.MaxPool2d):
                expected.append(last)
            y = last = layer(y)
        found = other(x)
    # AlexNet's third and fourth maps have no pooling behind them.
    pooled = [found[k - 1] for k in plan.pooled] + [found[-1]]
    assert len(pooled) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(pooled, expected, strict=True))
    assert [m.shape[1] for m in found] == list(plan.channels)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_smallest_picture_is_the_stated_one(plan: Plan) -> None:
    measure = random_lpips(plan)
    smallest = np.zeros((plan.least, plan.least + 5, 3), np.uint8)
    assert measure(smallest, smallest) == 0
    with pytest.raises(ValueError, match=f"needs {plan.least} pixels a side"):
        measure(smallest[1:], smallest[1:])
    with pytest.raises(RuntimeError):
        measure.net(torch.zeros(1, 3, plan.least - 1, plan.least - 1))


def test_sizes_that_differ_are_refused() -> None:
    a = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="sizes differ"):
        random_lpips(ALEXNET)(a, a[:-1])


@pytest.mark.parametrize(("name", "plan"), PLANS.items())
def test_random_weights_are_refused_under_the_published_name(
    name: str, plan: Plan, tmp_path: Path
) -> None:
    with (tmp_path / plan.imported.file).open("wb") as file:
        save_tensors(file, as_stored(random_net(plan)))
    with pytest.raises(UserError, match=f"holds other weights than {plan.name}'s"):
        open_backbone(plan, WeightFolders((tmp_path,)))


@pytest.mark.parametrize("zipped", [True, False])
def test_torchvisions_own_file_is_read(zipped: bool, tmp_path: Path) -> None:
    net, layers = random_net(ALEXNET), (0, 3, 6, 8, 10)
    stored = {
        f"features.{layer}.{part}": as_stored(net)[f"conv{k}.{part}"]
        for k, layer in enumerate(layers)
        for part in ("weight", "bias")
    }
    path = tmp_path / ALEXNET.original.file
    stored["classifier.1.bias"] = torch.zeros(2)
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    original = dataclasses.replace(ALEXNET.original, sha256=fs.sha256(path))
    plan = dataclasses.replace(ALEXNET, original=original)
    found = open_backbone(plan, WeightFolders((tmp_path,)))
    assert all(torch.equal(t, as_stored(net)[name]) for name, t in as_stored(found).items())
    with pytest.raises(UserError, match="is not the file of that name"):
        open_backbone(ALEXNET, WeightFolders((tmp_path,)))


# LPIPS --------------------------------------------------------------------------------------------


def equations(measure: LPIPS, a: Tensor, b: Tensor) -> float:
    """LPIPS of one pair in [-1, 1], in float64, pixel by pixel."""
    net = Backbone(measure.net.plan)
    net.load_state_dict(measure.net.state_dict())
    net = net.double().requires_grad_(False)
    shift = np.array([-0.030, -0.088, -0.188])[:, None, None]
    scale = np.array([0.458, 0.448, 0.450])[:, None, None]
    maps = [
        [m[0].numpy() for m in net(torch.from_numpy((x[0].double().numpy() - shift) / scale)[None])]
        for x in (a, b)
    ]
    total = 0.0
    for f, g, head in zip(*maps, measure.heads, strict=True):
        weights, summed = head.double().numpy(), 0.0
        for place in np.ndindex(f.shape[1:]):
            u, v = (m[(slice(None), *place)] for m in (f, g))
            u, v = (w / (np.sqrt(w @ w) + 1e-10) for w in (u, v))
            summed += weights @ (u - v) ** 2
        total += summed / np.prod(f.shape[1:])
    return float(total)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_lpips_is_its_equations(plan: Plan) -> None:
    measure = random_lpips(plan)
    a = (255 * draw(44, 36, 3)).to(torch.uint8).numpy()
    b = (255 * draw(44, 36, 3, seed=1)).to(torch.uint8).numpy()
    unit, other = (torch.from_numpy(x).permute(2, 0, 1)[None] / 127.5 - 1 for x in (a, b))
    expected = equations(measure, unit, other)
    assert measure(a, b) == pytest.approx(expected, rel=2e-6)
    assert measure(b, a) == pytest.approx(expected, rel=2e-6)
    # Images in [0, 1] by mistake are another number.
    assert abs(float(measure.distance((unit + 1) / 2, (other + 1) / 2)) / expected - 1) > 1e-2


def test_pictures_of_a_batch_are_measured_one_by_one() -> None:
    measure = random_lpips(ALEXNET)
    a, b = (2 * draw(3, 3, 40, 33, seed=s) - 1 for s in (0, 1))
    alone = torch.cat([measure.distance(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(measure.distance(a, b), alone, rtol=1e-5, atol=0)


def test_grey_is_measured_in_all_three_channels() -> None:
    measure = random_lpips(ALEXNET)
    a, b = ((255 * draw(40, 40, 1, seed=s)).to(torch.uint8).numpy() for s in (0, 1))
    assert measure(a, b) == measure(a.repeat(3, 2), b.repeat(3, 2)) > 0


@pytest.mark.parametrize("name", NETS)
def test_the_heads_inside_torchmetrics_are_the_published_ones(name: str) -> None:
    plan, need = NETS[name]
    _, path = WeightFolders(()).find(need)
    heads = load_foreign_weights(path, legacy=True)
    assert [heads[f"lin{k}.model.1.weight"].numel() for k in range(5)] == list(plan.channels)
    assert all((head >= 0).all() for head in heads.values())


@pytest.mark.parametrize("name", NETS)
def test_lpips_is_the_package_lpips(name: str) -> None:
    lpips = pytest.importorskip("lpips", reason="needs the extra 'perceptual'")
    theirs = lpips.LPIPS(net=name, pnet_rand=True, verbose=False).eval()
    plan, _ = NETS[name]
    net = random_net(plan)
    convs, own = (
        [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)]
        for part in (theirs.net, net)
    )
    for conv, given in zip(convs, own, strict=True):
        conv.load_state_dict(given.state_dict())
    heads = [line.model[1].weight.detach().flatten() for line in theirs.lins]
    a, b = (2 * draw(1, 3, 50, 47, seed=s) - 1 for s in (0, 1))
    with torch.no_grad():
        expected = theirs(a, b).flatten()
    torch.testing.assert_close(LPIPS(net, heads).distance(a, b), expected, rtol=1e-6, atol=0)


GOLDEN = {
    "lpips-alex": {"astronaut": 0.305081, "chelsea": 0.364253, "coffee": 0.369513},
    "lpips-vgg": {"astronaut": 0.277261, "chelsea": 0.309536, "coffee": 0.315566},
    "dists": {"astronaut": 0.164364, "chelsea": 0.205501, "coffee": 0.190288},
}
"""Of a picture and its bicubic enlargement from a quarter."""


@pytest.mark.parametrize("picture", GOLDEN["lpips-alex"])
def test_golden_lpips_alex(picture: str) -> None:
    measure = published(open_lpips, "alex")
    truth, up = g2(picture)
    assert measure(up, truth) == pytest.approx(GOLDEN["lpips-alex"][picture], abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("picture", GOLDEN["lpips-vgg"])
def test_golden_lpips_vgg(picture: str) -> None:
    measure = published(open_lpips, "vgg")
    truth, up = g2(picture)
    assert measure(up, truth) == pytest.approx(GOLDEN["lpips-vgg"][picture], abs=2e-4)


# DISTS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dists_net() -> Backbone:
    return random_net(VGG16, L2Pool())


def test_pooling_is_the_root_of_hannings_mean_of_squares() -> None:
    x = draw(1, 2, 5, 6).double()
    window = np.outer([1, 2, 1], [1, 2, 1]) / 16
    padded = np.pad(x[0].numpy() ** 2, ((0, 0), (1, 1), (1, 1)))
    expected = [
        [
            [np.sqrt((plane[i : i + 3, j : j + 3] * window).sum()) for j in range(0, 6, 2)]
            for i in range(0, 5, 2)
        ]
        for plane in padded
    ]
    torch.testing.assert_close(L2Pool()(x)[0], torch.tensor(expected), rtol=1e-9, atol=1e-9)


def test_texture_and_structure_are_their_equations() -> None:
    x, y = (draw(1, 2, 7, 9, seed=s).double() for s in (0, 1))
    texture, structure = _compared(x, y)
    for c in range(2):
        u, v = x[0, c].numpy(), y[0, c].numpy()
        l = (2 * u.mean() * v.mean() + 1e-6) / (u.mean() ** 2 + v.mean() ** 2 + 1e-6)  # noqa: E741
        covariance = (u * v).mean() - u.mean() * v.mean()
        s = (2 * covariance + 1e-6) / (u.var() + v.var() + 1e-6)
        assert float(texture[0, c]) == pytest.approx(l, rel=1e-12)
        assert float(structure[0, c]) == pytest.approx(s, rel=1e-9)


def test_dists_of_flat_pictures_is_ssims_luminance(dists_net: Backbone) -> None:
    # α on the picture's own channels alone: all that is left is 1 - 2ab / (a² + b²).
    alpha, beta = torch.zeros(sum(CHANNELS)), torch.zeros(sum(CHANNELS))
    alpha[:3] = torch.tensor([0.1, 0.2, 0.3])
    measure = DISTS(dists_net, alpha, beta)
    a, b = np.full((20, 24, 3), 51, np.uint8), np.full((20, 24, 3), 102, np.uint8)
    expected = 1 - (2 * 0.2 * 0.4 + 1e-6) / (0.2**2 + 0.4**2 + 1e-6)
    assert measure(a, b) == pytest.approx(expected, abs=1e-6)


def test_dists_is_symmetric_and_nought_where_pictures_are_equal(dists_net: Backbone) -> None:
    weights = [draw(sum(CHANNELS), seed=s) for s in (2, 3)]
    measure = DISTS(dists_net, *weights)
    a, b = ((255 * draw(32, 24, 3, seed=s)).to(torch.uint8).numpy() for s in (0, 1))
    assert measure(a, a) == pytest.approx(0, abs=1e-6)
    assert measure(a, b) == pytest.approx(measure(b, a), abs=1e-6)
    assert measure(a, b) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("picture", GOLDEN["dists"])
def test_golden_dists(picture: str) -> None:
    measure = published(open_dists)
    truth, up = g2(picture)
    assert measure(up, truth) == pytest.approx(GOLDEN["dists"][picture], abs=2e-4)


@pytest.mark.slow
def test_golden_dists_as_torchmetrics_documents_it() -> None:
    measure = published(open_dists)
    generator = torch.Generator().manual_seed(42)
    a, b = (torch.rand(5, 3, 256, 256, generator=generator) for _ in range(2))
    expected = torch.tensor([0.1285, 0.1344, 0.1356, 0.1277, 0.1276])
    torch.testing.assert_close(measure.distance(a, b), expected, rtol=0, atol=1e-4)
