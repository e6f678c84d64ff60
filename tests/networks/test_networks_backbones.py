"""Laws of every backbone, `net(x, t, y)`; a new entry is tested by being listed (with a size)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lit_restore.errors import UserError
from lit_restore.networks import BACKBONES, Network
from lit_restore.parallel.apply import checkpoint_blocks

SMALL: dict[str, dict[str, Any]] = {
    "DiMSUM": {"channels": 3, "size": 16, "width": 64, "depth": 3, "classes": 5,
               "attention_every": 2, "attention_heads": 4, "fusion_heads": 2, "state": 4},
    "DiT": {"channels": 3, "size": 16, "width": 32, "depth": 2, "heads": 2, "classes": 5},
}  # fmt: skip
"""Options that make each network small enough for a test."""

every_backbone = pytest.mark.parametrize("name", sorted(BACKBONES))


def small(name: str, **changes: Any) -> Network:
    """A small network whose zero-initialised layers are moved off zero."""
    torch.manual_seed(0)
    net = BACKBONES[name](**{**SMALL[name], **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def asked(net: Network, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    dtype = next(net.parameters()).dtype
    x = torch.randn(count, 3, *net.size, generator=generator)  # type: ignore[arg-type]
    t = torch.linspace(0.2, 0.7, count)
    return x.to(dtype), t.to(dtype), torch.arange(count) % 5


@every_backbone
@pytest.mark.parametrize("size", [16, [8, 16]])
def test_output_has_input_shape_and_every_parameter_a_finite_gradient(
    name: str, size: int | list[int]
) -> None:
    net = small(name, size=size)
    x, t, y = asked(net)
    out = net(x.requires_grad_(), t, y)
    (out.square().sum() + net(x, t).square().sum()).backward()
    assert out.shape == x.shape
    gradients = {key: p.grad for key, p in net.named_parameters()}
    assert [k for k, g in gradients.items() if g is None or not g.isfinite().all()] == []
    assert [k for k, g in gradients.items() if g is not None and not g.any()] == []
    assert x.grad is not None
    assert x.grad.any()


@every_backbone
def test_a_sample_depends_on_its_own_time_and_label_only(name: str) -> None:
    net = small(name).double()
    x, t, y = asked(net)
    out = net(x, t, y)
    later = net(x, t + torch.tensor([0.1, 0.0], dtype=torch.float64), y) - out
    other = net(x, t, y + torch.tensor([1, 0])) - out
    for change in (later, other):
        assert change[0].abs().max() > 1e-6
        assert change[1].abs().max() < 1e-12


@every_backbone
def test_no_label_is_the_label_of_no_class(name: str) -> None:
    net = small(name)
    x, t, _ = asked(net)
    assert torch.equal(net(x, t), net(x, t, torch.full((2,), 5)))


@every_backbone
def test_options_rebuild_the_same_state_dict(name: str) -> None:
    net = small(name)
    twin = type(net)(**json.loads(json.dumps(net.options)))
    assert twin.options == net.options
    twin.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(twin(*asked(net)), net(*asked(net)))


@every_backbone
def test_a_plan_without_memory_has_the_same_shapes(name: str) -> None:
    with torch.device("meta"):
        plan = BACKBONES[name](**SMALL[name])
    shapes = {key: tensor.shape for key, tensor in plan.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in small(name).state_dict().items()}
    assert {p.device.type for p in plan.parameters()} == {"meta"}


@every_backbone
def test_float64_agrees_with_float32(name: str) -> None:
    net = small(name)
    single = net(*asked(net))
    net.double()
    double = net(*asked(net))
    assert double.dtype is torch.float64
    assert (double - single).abs().max() < 1e-4 * double.abs().max()


@every_backbone
def test_half_precision_by_autocast_stays_near(name: str) -> None:
    net = small(name)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(*asked(net)).float()
    whole = net(*asked(net))
    assert (half - whole).norm() < 0.05 * whole.norm()


@every_backbone
def test_blocks_are_distinct_modules_of_the_net(name: str) -> None:
    net = small(name)
    blocks = net.blocks()
    assert len({id(block) for block in blocks}) == len(blocks) >= 2
    assert all(any(block is module for module in net.modules()) for block in blocks)


@every_backbone
def test_compiled_blocks_have_no_graph_break(name: str) -> None:
    net = small(name).eval()
    whole = net(*asked(net))
    for block in net.blocks():
        block.compile(fullgraph=True, backend="aot_eager")
    assert (net(*asked(net)) - whole).abs().max() < 1e-5


@every_backbone
def test_checkpointed_blocks_are_compiled_too(name: str) -> None:
    net = small(name)
    net(*asked(net)).square().sum().backward()
    plain = {key: p.grad for key, p in net.named_parameters()}
    net.zero_grad()
    checkpoint_blocks(net)
    torch._dynamo.reset()
    counters.clear()
    for block in net.blocks():
        block.compile(fullgraph=True, backend="aot_eager")
    net(*asked(net)).square().sum().backward()
    assert counters["stats"]["unique_graphs"] > 0
    for key, p in net.named_parameters():
        torch.testing.assert_close(p.grad, plain[key], rtol=1e-4, atol=1e-6)


@every_backbone
def test_memory_format_changes_nothing(name: str) -> None:
    net = small(name).double()
    whole = net(*asked(net))
    assert (net.to(memory_format=torch.channels_last)(*asked(net)) - whole).abs().max() < 1e-10


@every_backbone
def test_drop_path_drops_in_training_only(name: str) -> None:
    net = small(name, drop_path=0.9)
    net.eval()
    assert torch.equal(net(*asked(net)), net(*asked(net)))
    net.train()
    torch.manual_seed(0)
    assert not torch.equal(net(*asked(net, 16)), net(*asked(net, 16)))


@every_backbone
def test_another_size_and_labels_without_classes_are_refused(name: str) -> None:
    net = small(name)
    with pytest.raises(UserError, match="takes 3x16x16, got 3x16x8"):
        net(torch.zeros(1, 3, 16, 8), torch.zeros(1))
    with pytest.raises(UserError, match="classes: 0"):
        small(name, classes=0)(*asked(net))


@every_backbone
@pytest.mark.parametrize(
    ("changes", "named"),
    [({"size": 18, "patch": 4}, "patch 4"), ({"depth": 0}, "depth"), ({"size": [8]}, "size")],
)
def test_impossible_options_are_one_line(name: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        small(name, **changes)


@every_backbone
def test_weights_are_carried_to_a_larger_picture_by_bicubic_positions(name: str) -> None:
    net, larger = small(name), small(name, size=32)
    carried = larger.adapted(net.state_dict())
    larger.load_state_dict(carried, strict=True)
    table = net.state_dict()["pos_embed"][0].view(8, 8, -1)
    other = carried["pos_embed"][0].view(16, 16, -1)
    means = [t.mean(dim=(0, 1)) for t in (table, other)]
    assert (means[0] - means[1]).abs().max() < 0.05
    corners = other[::15, ::15] - table[::7, ::7]
    assert corners.abs().max() < (other[0, 0] - other[8, 8]).abs().max()


@every_backbone
def test_positions_of_an_oblong_grid_of_square_number_stay_as_they_are(name: str) -> None:
    net = small(name, size=[8, 32])
    assert net.state_dict()["pos_embed"].shape[1] == 8**2
    assert torch.equal(net.adapted(net.state_dict())["pos_embed"], net.state_dict()["pos_embed"])


@every_backbone
def test_a_larger_patch_sees_in_an_enlarged_picture_what_the_smaller_saw(name: str) -> None:
    net, larger = small(name).double(), small(name, size=32, patch=4).double()
    larger.load_state_dict(larger.adapted(net.state_dict()), strict=True)
    x, t, y = asked(net)
    enlarged = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = net(x, t, y).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert (larger(enlarged, t, y) - expected).abs().max() < 1e-10


@every_backbone
def test_a_smaller_patch_takes_the_corner_of_the_kernel(name: str) -> None:
    net = small(name, patch=4)
    carried = small(name, patch=2).adapted(net.state_dict())
    kernel = net.state_dict()["x_embedder.proj.weight"]
    assert torch.equal(carried["x_embedder.proj.weight"], kernel[..., :2, :2])


@every_backbone
@pytest.mark.parametrize("classes", [5, 0])
def test_new_classes_start_as_no_class(name: str, classes: int) -> None:
    net, more = small(name, classes=classes), small(name, classes=9)
    more.load_state_dict(more.adapted(net.state_dict()), strict=True)
    x, t, y = asked(net)
    assert (more(x, t, y) - net(x, t)).abs().max() < 1e-5
