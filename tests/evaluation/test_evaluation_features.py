"""Feature networks: their structure against torchvision's, their names, their files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.evaluation.features import (
    FEATURES,
    FIDInception,
    PixelFeatures,
    SqueezeNetFeatures,
    open_features,
    weights_digest,
)
from lit_restore.evaluation.kernel_distance import kernel_distance
from lit_restore.io import fs
from lit_restore.networks.inception import FIDInceptionV3, tf1_bilinear
from lit_restore.networks.squeezenet import SqueezeNet

WEIGHTS = Path(__file__).parents[2].parent / "shared" / "data" / "weights.tar"
CAFFE = "squeezenet11_caffe_notop.npz"


def seeded(net: nn.Module) -> nn.Module:
    """Weights of unit gain, so that deep features neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def inception() -> FIDInceptionV3:
    net = FIDInceptionV3()
    seeded(net)
    return net


@pytest.fixture(scope="module")
def squeezenet() -> SqueezeNet:
    net = SqueezeNet()
    seeded(net)
    return net


def images(count: int = 3, size: int = 20) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# Structure ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_squeezenet_is_torchvisions(squeezenet: SqueezeNet) -> None:
    from torchvision.models import squeezenet1_1

    peer = squeezenet1_1().features.eval()
    own = list(squeezenet.state_dict().values())
    peer.load_state_dict(dict(zip(peer.state_dict(), own, strict=True)))
    x = torch.randn(1, 3, 99, 76)
    torch.testing.assert_close(squeezenet(x), peer(x).mean((2, 3)))


@torch.no_grad()
def test_inception_is_torchvisions_but_for_the_pools(
    inception: FIDInceptionV3, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import inception as theirs

    peer = theirs.Inception3(1008, aux_logits=False, init_weights=False).eval()
    peer.load_state_dict(inception.state_dict())  # the same names and shapes
    peer.fc = nn.Identity()
    x = torch.rand(1, 3, 107, 107) * 2 - 1
    ours = inception(x)
    assert not torch.allclose(ours, peer(x), rtol=1e-2)
    average = torch.nn.functional.avg_pool2d
    monkeypatch.setattr(
        theirs.F, "avg_pool2d", lambda *a, **k: average(*a, **k, count_include_pad=False)
    )
    assert not torch.allclose(ours, peer(x), rtol=1e-2)
    monkeypatch.setattr(peer.Mixed_7c, "forward", lambda y: joined_with_maximum(peer.Mixed_7c, y))
    torch.testing.assert_close(ours, peer(x))


def joined_with_maximum(block: nn.Module, x: Tensor) -> Tensor:
    """Torchvision's last block, pooling by maximum."""
    short, double = block.branch3x3_1(x), block.branch3x3dbl_2(block.branch3x3dbl_1(x))
    pooled = nn.functional.max_pool2d(x, 3, 1, 1)
    return torch.cat(
        [
            block.branch1x1(x),
            *(block.branch3x3_2a(short), block.branch3x3_2b(short)),
            *(block.branch3x3dbl_3a(double), block.branch3x3dbl_3b(double)),
            block.branch_pool(pooled),
        ],
        1,
    )


def test_inception_holds_the_classifier_of_1008_rows(inception: FIDInceptionV3) -> None:
    assert inception.fc.weight.shape == (1008, 2048)
    assert sum(p.numel() for p in inception.parameters()) == 23_850_960


def test_tensorflow_1_looks_without_half_pixel_centres() -> None:
    """Outputs of 4 → 6 look at 0, 2/3, 4/3, 2, 8/3 and 10/3, which is beyond the last pixel."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    expected = torch.tensor([0, 2 / 3, 4 / 3, 2, 8 / 3, 3])
    torch.testing.assert_close(tf1_bilinear(ramp, 6)[0, 0, 2], expected)
    torch.testing.assert_close(tf1_bilinear(ramp.mT, 6)[0, 0, :, 2], expected)
    assert torch.equal(tf1_bilinear(ramp, 2)[0, 0, 0], torch.tensor([0.0, 2.0]))  # no antialiasing


# Preparation --------------------------------------------------------------------------------------


def test_squeezenet_reads_bgr_less_the_authors_means(squeezenet: SqueezeNet) -> None:
    plain = torch.tensor([200.0, 100.0, 50.0]).view(1, 3, 1, 1).expand(1, 3, 9, 7)
    ready = SqueezeNetFeatures(squeezenet).prepare(plain)
    assert ready.shape == (1, 3, 227, 227)
    expected = torch.tensor([50 - 104.0, 100 - 117.0, 200 - 123.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(ready, expected.expand_as(ready), atol=1e-3, rtol=0)


def test_squeezenets_images_are_antialiased_where_they_shrink(squeezenet: SqueezeNet) -> None:
    y, x = torch.meshgrid(torch.arange(150), torch.arange(150), indexing="ij")
    checks = (255.0 * ((x + y) % 2)).expand(1, 3, 150, 150)
    ready = SqueezeNetFeatures(squeezenet, size=50).prepare(checks)[0, 0, 2:-2, 2:-2]
    torch.testing.assert_close(ready, torch.full_like(ready, 127.5 - 104), atol=8, rtol=0)


def test_pixels_are_means_over_areas() -> None:
    x = torch.randint(0, 256, (2, 3, 16, 24), generator=torch.Generator().manual_seed(0)) / 255
    expected = x.unflatten(2, (8, 2)).unflatten(4, (8, 3)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(PixelFeatures()(x), expected)


def test_levels_between_the_8_bits_make_no_difference(squeezenet: SqueezeNet) -> None:
    features = SqueezeNetFeatures(squeezenet, size=64)
    levels = torch.randint(0, 256, (2, 3, 20, 20), generator=torch.Generator().manual_seed(0))
    expected = features(levels / 255)
    assert torch.equal(features((levels + 0.4) / 255), expected)
    assert not torch.equal(features((levels + 0.6) / 255), expected)


def test_features_are_frozen_float32_and_alike_in_any_batch_and_precision(
    squeezenet: SqueezeNet,
) -> None:
    features = SqueezeNetFeatures(squeezenet.train(), size=64)
    assert not features._net.training
    assert not any(p.requires_grad for p in squeezenet.parameters())
    x = images(34)
    found = features(x)
    assert (found.shape, found.dtype) == ((34, 512), torch.float32)
    one_by_one = torch.cat([features(image[None]) for image in x[-4:]])
    torch.testing.assert_close(found[-4:], one_by_one, rtol=1e-4, atol=5e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(x), found)
    assert features(x[:0]).shape == (0, 512)


def test_inception_gives_2048_features(inception: FIDInceptionV3) -> None:
    features = FIDInception(inception, digest="00000000")
    ready = features.prepare(torch.tensor([0.0, 128.0, 255.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4))
    assert ready.shape == (1, 3, 299, 299)
    assert ready[0, :, 5, 5].tolist() == [-1, 0, 127 / 128]
    assert features(images(1)).shape == (1, 2048)


# Names --------------------------------------------------------------------------------------------


def test_no_substitute_is_called_fid(squeezenet: SqueezeNet) -> None:
    features = SqueezeNetFeatures(squeezenet)
    digest = weights_digest(squeezenet)
    assert features.title("fd", 50_000) == f"FD[squeezenet1.1-caffe-fire9-mean, {digest}]"
    assert PixelFeatures().title("recall", 10) == "recall[pixels-8x8-mean]"
    features.name = "FID-like"
    with pytest.raises(AssertionError):
        features.title("fd", 50_000)


def test_only_the_published_inception_is_called_fid(inception: FIDInceptionV3) -> None:
    published = FIDInception(inception, digest=FIDInception.published)
    assert published.title("fd", 10_000) == "FID"
    assert published.title("fd", 9_999) == "FID@9999"
    assert published.title("kid", 10_000) == "KID[inception-v3-fid, 6726825d]"
    assert FIDInception(inception, digest="0").title("fd", 50_000) == "FD[inception-v3-fid, 0]"


# Files --------------------------------------------------------------------------------------------


def npz(net: nn.Module, **more: np.ndarray) -> bytes:
    stream = io.BytesIO()
    arrays = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    np.savez(stream, **arrays, **more)
    return stream.getvalue()


def test_the_digest_names_the_weights_whatever_their_file(
    tmp_path: Path, squeezenet: SqueezeNet
) -> None:
    state = squeezenet.state_dict()
    torch.save(state, tmp_path / "s.pth")
    with_top = npz(squeezenet, **{"conv10.weight": np.zeros((2, 512, 1, 1), np.float32)})
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        info = tarfile.TarInfo("inner.npz")
        info.size = len(with_top)
        tar.addfile(info, io.BytesIO(with_top))
    one = open_features(f"squeezenet:{tmp_path}/s.pth")
    two = open_features(f"squeezenet:{tmp_path}/s.tar:inner.npz")
    assert one.digest == two.digest == weights_digest(squeezenet)
    state["conv1.bias"][0] += 1e-6
    torch.save(state, tmp_path / "s.pth")
    assert open_features(f"squeezenet:{tmp_path}/s.pth").digest != one.digest


def test_inceptions_file_is_known_by_its_digest_and_read_in_its_old_format(
    tmp_path: Path, inception: FIDInceptionV3, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {k: v for k, v in inception.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "pt_inception.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"is not pt_inception-2015-12-05-6726825d\.pth"):
        open_features(f"inception:{path}")
    monkeypatch.setattr(FIDInception, "published", fs.sha256(path)[:8])
    features = open_features(f"inception:{path}")
    loaded = features._net.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pixel", r"--features pixel: no such features; did you mean pixels\?"),
        ("vgg:f", "there are pixels, squeezenet, inception"),
        ("pixels:a.npz", "takes no file"),
        ("squeezenet", "needs a file of weights: squeezenet:FILE"),
        ("inception:", "needs a file of weights: inception:FILE"),
        ("squeezenet:{}/none.npz", "none.npz"),
        ("inception:{}/none.pth", "none.pth"),
        ("squeezenet:{}/s.tar", "is a tar; name its member"),
        ("squeezenet:{}/text.npz", "text.npz: truncated, or not a checkpoint"),
        ("squeezenet:{}/other.npz", "0 of 50 tensors match SqueezeNet"),
    ],
)
def test_a_wrong_name_or_file_is_one_line(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "text.npz").write_text("no weights")
    (tmp_path / "other.npz").write_bytes(npz(nn.Linear(2, 2)))
    with pytest.raises(UserError, match=message) as caught:
        open_features(spec.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_every_kind_is_listed_under_its_name() -> None:
    assert {kind: network.kind for kind, network in FEATURES.items()} == {
        kind: kind for kind in ("pixels", "squeezenet", "inception")
    }


def test_the_caffe_weights_tell_blur_and_noise_from_photographs() -> None:
    if not WEIGHTS.exists():
        pytest.skip("needs ../shared/data/weights.tar")
    import skimage.data
    from torchvision.transforms.functional import gaussian_blur

    features = open_features(f"squeezenet:{WEIGHTS}:{CAFFE}")
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1) / 255
    crops = photo.unfold(1, 64, 64).unfold(2, 64, 64).flatten(1, 2).transpose(0, 1)[::2]
    blurred = gaussian_blur(crops[1::2], 9, 1.5)
    noise = torch.rand(blurred.shape, generator=torch.Generator().manual_seed(0))
    base = features(crops[::2])
    other, soft, none = (
        kernel_distance(base, features(x)).mean for x in (crops[1::2], blurred, noise)
    )
    assert other < soft < none
