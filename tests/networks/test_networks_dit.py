"""DiT against its equations written out, its published sizes, and its start at zero."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.networks.dit import DiT

TINY = {"size": [8, 12], "width": 16, "depth": 2, "heads": 2, "classes": 3}


def moved(**options: object) -> DiT:
    """A tiny network in float64 whose parameters are all random."""
    net = DiT(**{**TINY, **options}).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise)
    return net


def inputs(batch: int = 2, channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(batch, channels, 8, 12, generator=generator, dtype=torch.float64)
    return x, torch.linspace(0.1, 0.9, batch, dtype=torch.float64), torch.arange(batch) % 3


def normed(v: Tensor) -> Tensor:
    centred = v - v.mean()
    return centred / (centred.square().mean() + 1e-6).sqrt()


def affine(p: Mapping[str, Tensor], name: str, v: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ v + p[f"{name}.bias"]


def attention(p: Mapping[str, Tensor], name: str, tokens: list[Tensor], heads: int) -> list[Tensor]:
    """Token by token, head by head, softmax written out."""
    width = len(tokens[0])
    size = width // heads
    q, k, v = (
        [affine(p, f"{name}.qkv", token)[part * width : (part + 1) * width] for token in tokens]
        for part in range(3)
    )
    outputs = [torch.zeros(width, dtype=torch.float64) for _ in tokens]
    for head in range(heads):
        s = slice(head * size, (head + 1) * size)
        queries, keys = [a[s] for a in q], [a[s] for a in k]
        for kind, rows in (("q", queries), ("k", keys)):
            if f"{name}.{kind}_norm.weight" in p:
                gain = p[f"{name}.{kind}_norm.weight"]
                rows[:] = [a / (a.square().mean() + 1e-6).sqrt() * gain for a in rows]
        for i, query in enumerate(queries):
            scores = torch.stack([query @ key for key in keys]) / math.sqrt(size)
            weights = scores.exp() / scores.exp().sum()
            outputs[i][s] = sum(w * value[s] for w, value in zip(weights, v, strict=True))
    return [affine(p, f"{name}.proj", output) for output in outputs]


def gelu_tanh(v: Tensor) -> Tensor:
    return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def by_equations(p: Mapping[str, Tensor], x: Tensor, t: float, label: int, depth: int) -> Tensor:
    """One picture (C, H, W), patch 2, two heads."""
    channels, height, width = x.shape
    patches = [
        x[:, row : row + 2, column : column + 2]
        for row in range(0, height, 2) for column in range(0, width, 2)
    ]  # fmt: skip
    kernel, bias = p["x_embedder.proj.weight"].flatten(1), p["x_embedder.proj.bias"]
    h = [kernel @ q.flatten() + bias + p["pos_embed"][0, n] for n, q in enumerate(patches)]
    angles = [1000 * t * 1e4 ** (-k / 128) for k in range(128)]
    waves = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    c = affine(p, "t_embedder.mlp.0", torch.tensor(waves, dtype=torch.float64))
    c = affine(p, "t_embedder.mlp.2", c * torch.sigmoid(c))
    c = c + p["y_embedder.embedding_table.weight"][label]
    c = c * torch.sigmoid(c)
    for i in range(depth):
        b = f"trunk.{i}"
        s1, k1, g1, s2, k2, g2 = affine(p, f"{b}.modulation", c).chunk(6)
        change = attention(p, f"{b}.attn", [normed(v) * (1 + k1) + s1 for v in h], 2)
        h = [v + g1 * d for v, d in zip(h, change, strict=True)]
        hidden = [affine(p, f"{b}.mlp.0", normed(v) * (1 + k2) + s2) for v in h]
        h = [v + g2 * affine(p, f"{b}.mlp.2", gelu_tanh(d)) for v, d in zip(h, hidden, strict=True)]
    s, k = affine(p, "final_layer.modulation", c).chunk(2)
    out = torch.zeros_like(x)
    for n, v in enumerate(h):
        pixels = affine(p, "final_layer.linear", normed(v) * (1 + k) + s).view(2, 2, channels)
        row, column = divmod(n, width // 2)
        for a in range(2):
            for b2 in range(2):
                out[:, 2 * row + a, 2 * column + b2] = pixels[a, b2]
    return out


@pytest.mark.parametrize("qk_norm", [False, True])
def test_forward_is_the_papers_equations_on_rectangles(qk_norm):
    net = moved(qk_norm=qk_norm)
    x, t, y = inputs()
    with torch.no_grad():
        out = net(x, t, y)
        for n in range(2):
            expected = by_equations(net.state_dict(), x[n], float(t[n]), int(y[n]), 2)
            assert expected.abs().max() > 0.1
            assert (out[n] - expected).abs().max() < 1e-11


def test_velocity_is_zero_at_the_start():
    net = DiT(**TINY)
    x, t, y = inputs()
    assert not net(x.float(), t.float(), y).any()


def test_blocks_are_the_identity_at_the_start():
    net = DiT(**TINY)
    generator = torch.Generator().manual_seed(0)
    h, c = torch.randn(2, 24, 16, generator=generator), torch.randn(2, 16, generator=generator)
    assert all(torch.equal(block(h, c), h) for block in net.blocks())


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
)
def test_published_number_of_parameters(width, depth, heads, millions):
    with torch.device("meta"):
        net = DiT(width=width, depth=depth, heads=heads)
    # The paper's position embedding is fixed and not counted.
    count = sum(p.numel() for p in net.parameters()) - net.pos_embed.numel()
    assert round(count / 1e6) == millions


def test_no_label_is_the_null_class_and_labels_matter():
    net = moved()
    x, t, y = inputs()
    assert torch.equal(net(x, t), net(x, t, torch.full((2,), 3)))
    assert (net(x, t, y) - net(x, t)).abs().max() > 1e-3


def test_a_network_without_classes_takes_no_labels():
    net = moved(classes=0)
    x, t, y = inputs()
    assert "y_embedder.embedding_table.weight" not in net.state_dict()
    assert net(x, t).shape == x.shape
    with pytest.raises(UserError, match=r"^y: labels were given"):
        net(x, t, y)


def test_samples_of_a_batch_do_not_meet():
    net = moved()
    x, t, y = inputs(3)
    out = net(x, t, y)
    alone = torch.cat([net(x[k : k + 1], t[k : k + 1], y[k : k + 1]) for k in range(3)])
    assert (out - alone).abs().max() < 1e-12


def test_every_parameter_has_a_finite_gradient():
    net = moved(qk_norm=True)
    x, t, _ = inputs()
    # Both kinds of rows: labels and, by the last sample, the null class.
    net(x, t, torch.tensor([0, 3])).square().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    bad = [n for n, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()]
    assert bad == []


def test_drop_path_acts_in_training_only_and_rises_with_depth():
    net = moved(drop_path=0.5, depth=3)
    assert [block.drop for block in net.blocks()] == [0.0, 0.25, 0.5]
    x, t, y = inputs(8)
    plain = moved(depth=3)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x, t, y), plain(x, t, y))
    net.train()
    torch.manual_seed(0)
    first, second = net(x, t, y), net(x, t, y)
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(net(x, t, y), first)


def test_compiles_as_one_graph():
    net = moved(qk_norm=True)
    x, t, y = inputs()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert (compiled(x, t, y) - net(x, t, y)).abs().max() < 1e-12


@pytest.mark.parametrize("qk_norm", [False, True])
def test_autocast_and_half_precision_round_only(qk_norm):
    net = moved(qk_norm=qk_norm)
    x, t, y = inputs()
    exact = net(x, t, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net.float()(x.float(), t.float(), y)
    half = net.bfloat16()(x.bfloat16(), t.bfloat16(), y)
    assert half.dtype == torch.bfloat16
    assert (mixed.double() - exact).abs().max() < 0.05 * exact.abs().max()
    # bfloat16 rounds the times themselves, by up to 1000 / 512 in the sinusoid's units.
    half_exact = moved(qk_norm=qk_norm)(x, t.bfloat16().double(), y)
    assert (half.double() - half_exact).abs().max() < 0.1 * exact.abs().max()


def test_options_rebuild_it_and_multiple_lets_its_own_size_pass():
    net = moved()
    twin = DiT(**json.loads(json.dumps(net.options))).double()
    twin.load_state_dict(net.state_dict(), strict=True)
    x, t, y = inputs()
    assert torch.equal(twin(x, t, y), net(x, t, y))
    assert 8 % net.multiple == 12 % net.multiple == 0
    assert net.multiple == 4
    assert DiT(**{**TINY, "size": 8}).multiple == 8


def test_another_size_is_refused():
    with pytest.raises(UserError, match=r"^x: the network takes 4x8x12, got 4x12x8$"):
        DiT(**TINY)(torch.zeros(1, 4, 12, 8), torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"heads": 3}, "heads"),
        ({"heads": 0}, "heads"),
        ({"width": 6, "heads": 2}, "width"),
        ({"depth": -1}, "depth"),
        ({"channels": 0}, "channels"),
        ({"patch": 5}, "size"),
        ({"size": [8]}, "size"),
        ({"classes": -1}, "classes"),
        ({"classes": None}, "classes"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"mlp_ratio": math.inf}, "mlp_ratio"),
        ({"mlp_ratio": math.nan}, "mlp_ratio"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"drop_path": -0.1}, "drop_path"),
    ],
)
def test_options_that_make_no_network_are_refused_by_name(options, where):
    with pytest.raises(UserError) as caught:
        DiT(**{**TINY, **options})
    assert caught.value.where == where
    assert "\n" not in str(caught.value)
