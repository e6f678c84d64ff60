"""DiMSUM against the reference tensors of the official modules, its sizes, and its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.networks.dimsum import PRESETS, DiMSUM, preset
from lit_restore.ops.scan_orders import scan_order
from lit_restore.weights.dimsum import layout, load_dimsum, to_official

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "dimsum_tiny_g16.npz"
SPEC = {"B/2": 198_547_216, "L/2": 459_916_304, "L/4": 459_818_048, "XL/2": 854_831_248}
UNUSED = {"B/2": 14_174_208, "L/2": 33_587_200, "L/4": 33_587_200, "XL/2": 63_756_288}


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Tensor]:
    if not GOLDEN.exists():
        pytest.skip("needs ../shared/golden")
    held = np.load(GOLDEN)
    return {name: torch.from_numpy(held[name]) for name in held.files}


@pytest.fixture(scope="module")
def official(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[3:]: tensor for name, tensor in golden.items() if name.startswith("sd/")}


# The official modules -----------------------------------------------------------------------------


def test_output_and_every_intermediate_are_the_official_ones(
    golden: Mapping[str, Tensor], official: dict[str, Tensor]
) -> None:
    net, seen = load_dimsum(official), dict[str, Tensor]()
    for number, block in enumerate(net.trunk):

        def note(_: object, given: tuple[Tensor, ...], fused: Tensor, n: int = number) -> None:
            seen[f"block{n}.spatial"], seen[f"block{n}.freq"] = given
            seen[f"block{n}.fuse"] = fused

        def after(_: object, given: object, out: tuple[Tensor, ...], n: int = number) -> None:
            seen[f"block{n}.hidden"] = out[0]

        block.fusion.register_forward_hook(note)
        block.register_forward_hook(after)
    assert net.shared is not None
    net.shared.register_forward_hook(lambda _, __, out: seen.update(attn_last=out))
    out = net(golden["in/x"], golden["in/t"], golden["in/y"])
    assert (out - golden["out"]).abs().max() < 1e-5
    wanted = {name[4:] for name in golden if name.startswith("cap/")}
    assert wanted == set(seen)
    for name in wanted:
        assert (seen[name] - golden[f"cap/{name}"]).abs().max() < 1e-5, name


def test_loss_and_gradients_are_the_official_ones(
    golden: Mapping[str, Tensor], official: dict[str, Tensor]
) -> None:
    net = load_dimsum(official)
    loss = net(golden["in/x"], golden["in/t"], golden["in/y"]).square().mean()
    loss.backward()
    assert float((loss - golden["loss"]).detach()) == pytest.approx(0, abs=1e-5)
    own, compared = dict(net.named_parameters()), 0
    for name, rows in layout(net):
        if own[name].grad is None:
            continue
        parts = own[name].grad.split([count for _, count in rows])
        for (theirs, _), part in zip(rows, parts, strict=True):
            if f"grad/{theirs}" in golden:
                expected = golden[f"grad/{theirs}"]
                error = (part.reshape(expected.shape) - expected).abs().max()
                assert error < 1e-5 * expected.abs().max(), theirs
                compared += 1
    assert compared == 5


def test_guided_output_is_the_official_one(
    golden: Mapping[str, Tensor], official: dict[str, Tensor]
) -> None:
    net = load_dimsum(official)
    x, t = golden["in/x"][:1].expand(2, -1, -1, -1), golden["in/t"][:1].expand(2)
    with_label, without = net(x, t, torch.tensor([3, 10]))
    guided = without + 1.4 * (with_label - without)
    assert (guided - golden["cfg/out"][0]).abs().max() < 1e-5


def test_weights_go_back_into_the_official_layout(official: dict[str, Tensor]) -> None:
    exported = to_official(load_dimsum(official))
    assert set(exported) == set(official)
    for name, tensor in official.items():
        assert exported[name].shape == tensor.shape
        assert torch.equal(exported[name], tensor), name


def test_what_no_output_depends_on_can_be_left_out(
    golden: Mapping[str, Tensor], official: dict[str, Tensor]
) -> None:
    kept, bare = load_dimsum(official), load_dimsum(official, keep_unused=False)
    given = golden["in/x"], golden["in/t"], golden["in/y"]
    assert torch.equal(kept(*given), bare(*given))
    assert parameters(kept) - parameters(bare) == 8 * 2 * (64 * 64 + 64)
    frozen = [name for name, p in kept.named_parameters() if not p.requires_grad]
    assert len(frozen) == 16
    assert all(".cond_proj." in name for name in frozen)


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPEC)
def test_sizes_are_the_published_ones_to_the_unit(name: str) -> None:
    with torch.device("meta"):
        assert parameters(preset(name, conditioning="inert")) == SPEC[name]
        assert parameters(preset(name)) == SPEC[name] - UNUSED[name]


def test_sizes_without_classes_and_at_512_pixels_are_the_published_ones() -> None:
    with torch.device("meta"):
        found = [
            parameters(preset("L/2", conditioning="inert", classes=0, size=size))
            for size in (32, 64)
        ]
        assert found == [458_892_304, 459_678_736]
        assert parameters(preset("L/2", conditioning="inert", depth=20)) == 567_940_112


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name: str) -> None:
    with torch.device("meta"):
        net = preset(name)
    assert net.blocks()


def test_an_unknown_preset_is_one_line() -> None:
    with pytest.raises(UserError, match="there is no preset S/2; known are B/2"):
        preset("S/2")


# Options ------------------------------------------------------------------------------------------


def tiny(**changes: Any) -> DiMSUM:
    torch.manual_seed(0)
    options = {
        "channels": 3, "size": 16, "width": 64, "depth": 2, "classes": 3, "attention_every": 2,
        "attention_heads": 2, "fusion_heads": 2, "state": 4,
    }  # fmt: skip
    net = DiMSUM(**{**options, **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.double()


def given(count: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    return x, torch.full((count,), 0.3).double(), torch.zeros(count, dtype=torch.int64)


@pytest.mark.parametrize(
    "change",
    [
        {"scan": "sweep-8"}, {"scan": "zigzag-8"}, {"scan": "jpeg-8"}, {"wavelet_scan": "raster"},
        {"layout": "subband"}, {"levels": 1}, {"wavelet": "db2"}, {"fusion": "k"},
        {"conditioning": "prefix"}, {"final_norm": True}, {"qk_norm": True},
        {"time_scale": 1000.0},
    ],
)  # fmt: skip
def test_every_option_changes_what_is_computed_and_all_of_it_learns(change: dict[str, Any]) -> None:
    plain, net = tiny(), tiny(**change)
    own = net.state_dict()
    net.load_state_dict({**own, **{k: v for k, v in plain.state_dict().items() if k in own}})
    out = net(*given())
    assert (out - plain(*given())).abs().max() > 1e-4
    (out.square().sum() + net(*given()[:2]).square().sum()).backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_conditioned_mixers_hear_the_time_in_every_token_of_the_scan() -> None:
    # With adaLN silent, only the prefix can carry the time from the embedding to the branches.
    net, deaf = tiny(conditioning="prefix"), tiny()
    for module in (net, deaf):
        with torch.no_grad():
            module.modulation.weight.zero_()
            module.modulation.bias.fill_(1.0)
    x, t, y = given()
    assert (net(x, t, y) - net(x, t + 0.2, y)).abs().amin(dim=(0, 1)).min() > 0
    assert torch.equal(deaf(x, t, y), deaf(x, t + 0.2, y))


def test_unused_conditioning_changes_nothing() -> None:
    net, plain = tiny(conditioning="inert"), tiny()
    own = net.state_dict()
    net.load_state_dict({**own, **plain.state_dict()})
    assert torch.equal(net(*given()), plain(*given()))


def test_closed_branches_pass_their_input_on() -> None:
    torch.manual_seed(0)
    net = DiMSUM(channels=3, size=16, width=64, depth=1, classes=0, attention_every=0,
                 fusion_heads=2, zero_branches=True)  # fmt: skip
    seen: list[tuple[Tensor, ...]] = []
    net.trunk[0].fusion.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    net.trunk[0].norm.register_forward_hook(lambda _, __, out: seen.append((out,)))
    net(torch.randn(1, 3, 16, 16), torch.ones(1))
    (u,), branches = seen
    assert (torch.cat(branches, -1) - u).abs().max() < 1e-5


def test_at_the_start_the_velocity_is_zero_and_no_gate_of_an_mlp_is_open() -> None:
    net = DiMSUM(channels=3, size=16, width=64, depth=2, classes=3, fusion_heads=2,
                 attention_heads=2)  # fmt: skip
    assert not net(torch.randn(1, 3, 16, 16), torch.ones(1)).any()
    parts = net.modulation.weight.split(net.parts)
    assert parts[0][: 3 * 64].any()
    assert not parts[0][3 * 64 :].any()
    assert not parts[-1].any()


def test_the_blocks_scan_in_the_released_orders() -> None:
    net = tiny(depth=5, attention_every=0)
    for number, block in enumerate(net.trunk):
        for row, kind in enumerate(("sweep-4", "window")):
            assert block.index[row].tolist() == scan_order(kind, number, 8, 8).tolist()


def test_the_step_of_the_scan_starts_log_uniform_between_a_thousandth_and_a_tenth() -> None:
    net = DiMSUM(width=512, depth=1, attention_every=0, classes=0)
    dt = torch.nn.functional.softplus(net.trunk[0].mixers.dt_bias.detach().double())
    assert 0.999e-3 < dt.min() < 1.2e-3
    assert 0.09 < dt.max() < 0.1001
    assert dt.log().mean() == pytest.approx(np.log(1e-2), abs=0.1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 20}, "10x10"), ({"scan": "spiral"}, "spiral"), ({"wavelet": "haarr"}, "haarr"),
        ({"width": 40}, "width|channels"), ({"fusion_heads": 7}, "fusion_heads"),
        ({"attention_heads": 7}, "attention_heads"), ({"drop_path": 1.0}, "drop_path"),
        ({"attention_every": -1}, "attention_every"), ({"fusion": "kv"}, "fusion"),
        ({"conditioning": "token"}, "conditioning"),
        ({"classes": -1}, "classes"), ({"levels": 3, "size": 8}, "levels"),
    ],
)  # fmt: skip
def test_what_the_grid_or_the_width_cannot_hold_is_one_line(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        tiny(**change)


def test_activation_checkpoints_change_no_gradient_and_keep_the_scans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lit_restore.ops.causal_conv import reference as conv
    from lit_restore.ops.selective_scan import dispatch
    from lit_restore.ops.selective_scan import reference as scan
    from lit_restore.parallel.apply import checkpoint_blocks

    monkeypatch.setattr(dispatch, "BACKENDS", {dispatch.REFERENCE: ()})
    calls = {"scan": 0, "conv": 0}

    def counting(name: str, forward: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return forward(*args, **options)

        return counted

    monkeypatch.setattr(scan, "forward", counting("scan", scan.forward))
    monkeypatch.setattr(conv, "forward", counting("conv", conv.forward))
    net = tiny(conditioning="prefix")
    net(*given()).square().sum().backward()
    once = dict(calls)
    assert min(once.values()) > 0
    plain = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    checkpoint_blocks(net)
    net(*given()).square().sum().backward()
    assert calls == {"scan": 2 * once["scan"], "conv": 3 * once["conv"]}
    for name, p in net.named_parameters():
        assert torch.equal(p.grad, plain[name]), name  # type: ignore[arg-type]


def test_a_network_wholly_in_bfloat16_computes_the_same_to_its_digits() -> None:
    net = tiny(final_norm=True).requires_grad_(False)
    x, t, y = given()
    exact = net(x, t, y)
    out = net.bfloat16()(x.bfloat16(), t, y)
    assert out.dtype == torch.bfloat16
    assert float((out - exact).norm() / exact.norm()) < 0.05


def test_no_pictures_and_no_memory_give_their_shapes() -> None:
    net = tiny(conditioning="prefix")
    assert net(*(a[:0] for a in given())).shape == (0, 3, 16, 16)
    assert net.to("meta")(*(a.to("meta") for a in given())).shape == (1, 3, 16, 16)
