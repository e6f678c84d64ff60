"""What is measured of a run: arithmetic by hand, clocks by fake ones, peaks by their names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_restore.callbacks.flops import flops_per_image, meta_twin, shapes_only
from lit_restore.callbacks.throughput import (
    OwnTime,
    Stopwatch,
    after_own_backward,
    memory_gb,
    mfu,
    resident_bytes,
    skew,
)
from lit_restore.data.batch import Sample
from lit_restore.data.samples import Augmentation
from lit_restore.networks import BURST_RESTORERS, FUSIONS, NETWORKS, RESTORERS, UNet
from lit_restore.parallel.peaks import arithmetic_of, device_peak, peak_flops
from lit_restore.training import DenoiserPretraining


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- FLOPs ------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two convolutions whose arithmetic a person can do."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


LEVEL = torch.tensor([0.1])


def counted(net: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, shapes_only(net):
        net(*inputs).square().mean().backward()
    return counter.get_total_flops()


def test_flops_of_two_convolutions_are_those_done_by_hand() -> None:
    height, width = 12, 20
    first, second = 2 * 3 * 5 * 9 * height * width, 2 * 5 * 3 * height * width
    # Backward: the gradient of the weights, and that of the input except for the first layer's.
    x = torch.rand(1, 3, height, width)
    assert counted(Small(), x, LEVEL) == (first + second) + (first + 2 * second)


def test_frozen_layers_have_no_gradient_of_weights() -> None:
    net = Small()
    net.first.requires_grad_(False)
    first, second = 2 * 3 * 5 * 9 * 64, 2 * 5 * 3 * 64
    assert counted(net, torch.rand(1, 3, 8, 8), LEVEL) == first + second + second


def test_counted_shapes_are_those_of_the_real_step() -> None:
    net = UNet(widths=(8, 16), depths=(1, 1))
    x = torch.rand(1, 3, 16, 24)
    with FlopCounterMode(display=False) as counter:
        net(x, torch.tensor([0.1])).square().mean().backward()
    assert counted(net, x, LEVEL) == counter.get_total_flops()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_can_be_counted(name: str) -> None:
    small: dict[str, dict[str, Any]] = {
        "MIRNet": {"width": 8, "rrgs": 1, "msrbs": 1},
        "UNet": {"widths": [8], "depths": [1]},
        "DiMSUM": {"channels": 3, "width": 64, "depth": 1, "fusion_heads": 2},
        "DiT": {"channels": 3, "width": 32, "depth": 1, "heads": 2},
        "EDSR": {"width": 8, "depth": 1},
        "BSRT": {"frames": 2, "width": 8, "embed": 8, "entry_depth": 1, "depths": [1], "heads": 2,
                 "groups": 2},
    }  # fmt: skip
    net = NETWORKS[name](**small.get(name, {}))
    image, t = torch.rand(1, 3, 32, 32), torch.tensor([7])
    calls: dict[str, tuple[Tensor, ...]] = {
        **dict.fromkeys(RESTORERS, (image,)),
        **dict.fromkeys(FUSIONS, (image, image, t)),
        **dict.fromkeys(BURST_RESTORERS, (torch.rand(1, 2, 4, 16, 16),)),
    }
    found = counted(net, *calls.get(name, (image, LEVEL)))
    # Sums and weights of bands alone: nothing of what PyTorch's counter counts.
    assert (found > 0) == (name != "WaveletAverage")


def test_a_meta_twin_holds_no_memory_and_shares_what_is_shared() -> None:
    net = Small()
    net.again = net.first  # type: ignore[assignment]
    net.register_buffer("table", torch.rand(3))
    twin: Any = meta_twin(net)
    assert all(t.is_meta for t in (*twin.parameters(), *twin.buffers()))
    assert twin.again is twin.first
    assert not any(p.is_meta for p in net.parameters())


def test_the_network_is_itself_again_even_after_an_error() -> None:
    net = Small()
    with pytest.raises(ValueError, match="mine"), shapes_only(net):
        raise ValueError("mine")
    assert "forward" not in vars(net)
    out = net(torch.rand(1, 3, 4, 4), torch.rand(1))
    assert out.shape == (1, 3, 4, 4)
    assert out.any()


class Pictures:
    """A source of one picture."""

    counts = (1,)

    def read(self, index: int, window: object = None) -> Sample:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (40, 48, 3), dtype=torch.uint8, generator=generator)
        return Sample(key="a", position=0, image=pixels.numpy())

    def where(self, index: int) -> str:
        return "a"


def module_on_pictures(net: Any, crop: int = 16) -> DenoiserPretraining:
    from lit_restore.data import ShardDataModule

    module = DenoiserPretraining(net, sigma_max=0.2)
    data = ShardDataModule(crop=crop, total_samples=8, global_batch=8)
    data.sources["train"] = Pictures()  # type: ignore[assignment]
    module._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    return module


def test_counting_changes_no_random_state_parameter_or_gradient() -> None:
    module = module_on_pictures(UNet(widths=(8, 8), depths=(1, 1)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    flops = flops_per_image(module)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert flops == counted(UNet(widths=(8, 8), depths=(1, 1)), torch.rand(1, 3, 16, 16), LEVEL)


def test_the_crop_decides_the_count() -> None:
    net = UNet(widths=(8, 8), depths=(1, 1))
    small, large = (flops_per_image(module_on_pictures(net, crop)) for crop in (16, 32))
    assert small is not None
    assert large == 4 * small


def test_what_cannot_be_counted_ends_no_run() -> None:
    class Asks(UNet):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return super().forward(x, sigma) * float(x.mean())  # asks a meta tensor for its value

    module = module_on_pictures(Asks(widths=(8,), depths=(1,)))
    assert flops_per_image(module) is None
    assert "forward" not in vars(module.net)


def test_augmentation_is_the_runs_own() -> None:
    assert module_on_pictures(UNet()).data.augmentation == Augmentation(
        crop=16, flip=True, rotate=True
    )


# --- peaks and utilisation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "arithmetic", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "fp16", 756),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "fp32", 66.9),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-SXM2-16GB", "tf32", 15.7),
        ("Tesla T4", "fp32", 8.1),
        ("NVIDIA B200", "bf16", 2250),
        ("Tesla T4", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA GH200 480GB", "bf16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA L40", "bf16", None),
        ("something else", "bf16", None),
        ("NVIDIA H200", None, None),
    ],
)
def test_a_peak_is_known_by_the_name_cuda_gives(
    device: str, arithmetic: str | None, tera: float | None
) -> None:
    expected = None if tera is None else pytest.approx(tera * 1e12)
    assert peak_flops(device, arithmetic) == expected


def test_the_arithmetic_follows_from_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arithmetic_of("bf16-mixed") == "bf16"
    assert arithmetic_of("16-mixed") == "fp16"
    assert arithmetic_of("64-true") is None
    for convolutions, products, expected in (
        ("tf32", "none", "tf32"),
        ("ieee", "tf32", "tf32"),
        ("ieee", "ieee", "fp32"),
    ):
        monkeypatch.setattr(
            torch, "backends",
            SimpleNamespace(
                cudnn=SimpleNamespace(conv=SimpleNamespace(fp32_precision=convolutions)),
                cuda=SimpleNamespace(matmul=SimpleNamespace(fp32_precision=products)),
            ),
        )  # fmt: skip
        assert arithmetic_of("32-true") == expected


def test_a_cpu_has_no_peak() -> None:
    assert device_peak(torch.device("cpu"), "32-true") is None


def test_mfu_is_the_share_of_all_devices_peak() -> None:
    assert mfu(1000, 2e9, 10e12, 1) == pytest.approx(0.2)
    assert mfu(1000, 2e9, 10e12, 4) == pytest.approx(0.05)
    assert mfu(1000, None, 10e12, 1) is None
    assert mfu(1000, 2e9, None, 1) is None


# --- clocks, memory, skew -------------------------------------------------------------------------


def test_callbacks_between_steps_are_no_wait_for_data() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 1  # the wait
    assert watch.data_arrived() == pytest.approx(1)
    clock.now += 4  # the step
    watch.step_ended(8)
    clock.now += 3  # validation
    watch.idle()
    clock.now += 2
    watch.data_arrived()
    values = watch.lap()
    assert values["seconds"] == pytest.approx(10)
    assert values["data_wait"] == pytest.approx(0.3)
    assert values["images_per_second"] == pytest.approx(0.8)
    clock.now += 5
    assert watch.lap()["images_per_second"] == 0


def test_skew_is_the_slowest_over_the_median_rank() -> None:
    assert skew([1.0, 1.0, 1.0, 4.0]) == pytest.approx(4)
    assert skew([1.0, 5.0]) == pytest.approx(5)
    assert skew([2.0, 2.0, 2.0]) == 1
    assert skew([1.0, float("nan")]) is None
    assert skew([]) is None


def test_own_time_is_data_and_work_but_no_wait_for_others() -> None:
    clock = Clock()
    own = OwnTime(torch.device("cpu"), clock)
    assert own.mean() != own.mean()  # nothing measured: not a number
    for number in range(8):
        own.began(waited=0.5)
        clock.now += 100 if number < 3 else 1  # compilation in the first ones
        own.ended()
        clock.now += 50  # waiting for a slow rank
    assert own.mean() == pytest.approx(1.5)


def test_the_end_of_own_backward_comes_after_all_gradients_and_before_later_callbacks() -> None:
    x = torch.ones(3, requires_grad=True)
    seen: list[str] = []

    def reduced(_: Tensor) -> None:  # as DDP does where its last bucket is ready
        seen.append("gradient")
        torch.autograd.Variable._execution_engine.queue_callback(lambda: seen.append("wait"))

    x.register_post_accumulate_grad_hook(reduced)
    loss = (x * 2).sum()
    after_own_backward(loss, lambda: seen.append("own end"))
    loss.backward()
    assert seen == ["gradient", "own end", "wait"]
    assert torch.equal(x.grad, torch.full((3,), 2.0))  # type: ignore[arg-type]


def test_a_loss_without_gradient_is_left_alone() -> None:
    after_own_backward(torch.zeros(()), lambda: None)


def test_memory_on_the_cpu_is_what_the_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resident_bytes()
    held = torch.ones(16 << 20)
    assert memory_gb(torch.device("cpu")) * 1e9 - before > 0.8 * held.nbytes
    monkeypatch.setattr("lit_restore.callbacks.throughput._STATM", "/nowhere")
    assert resident_bytes() > held.nbytes


@pytest.mark.gpu
def test_memory_on_cuda_is_the_peak_since_the_last_call() -> None:
    device = torch.device("cuda", 0)
    memory_gb(device)
    held = torch.ones(16 << 20, device=device)
    del held
    assert memory_gb(device) * 1e9 >= 4 * (16 << 20)
    assert memory_gb(device) * 1e9 < 4 * (16 << 20)


@pytest.mark.gpu
def test_own_time_on_cuda_is_measured_by_events() -> None:
    device = torch.device("cuda", 0)
    own = OwnTime(device)
    x = torch.rand(2048, 2048, device=device, requires_grad=True)
    for _ in range(6):
        own.began(0.0)
        loss = (x @ x).sum()
        own.watch(loss)
        loss.backward()
    assert 0 < own.mean() < 10
