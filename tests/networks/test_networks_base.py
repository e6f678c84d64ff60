"""Recorded options and reflection, apart from any real network."""

import copy
import inspect
import pickle

import pytest
import torch

from lit_restore.networks.base import Network, apply_padded


class Plain(Network):
    """A network that passes its input on."""

    multiple = 8

    def __init__(self, a: int, sizes: tuple[int, ...] = (1, 2), *, word: str | None = None) -> None:
        super().__init__()
        self.seen: tuple[int, int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = (x.shape[-2], x.shape[-1])
        return x


class Child(Plain):
    """A subclass with arguments of its own."""

    def __init__(self, b: float = 0.5) -> None:
        super().__init__(7)


class Heir(Plain):
    """A subclass that leaves the constructor alone."""


def test_options_are_the_bound_arguments_with_defaults_as_json():
    assert Plain(3).options == {"a": 3, "sizes": [1, 2], "word": None}
    assert Plain(a=3, sizes=(4,), word="x").options == {"a": 3, "sizes": [4], "word": "x"}


def test_a_subclass_records_its_own_arguments_or_inherits_the_recording():
    assert Child().options == {"b": 0.5}
    assert Heir(5).options == {"a": 5, "sizes": [1, 2], "word": None}


def test_options_survive_copy_and_pickle():
    net = Plain(3)
    assert copy.deepcopy(net).options == net.options
    assert pickle.loads(pickle.dumps(net)).options == net.options


def test_the_signature_stays_visible():
    assert list(inspect.signature(Plain).parameters) == ["a", "sizes", "word"]


def test_wrong_arguments_are_named_as_without_recording():
    with pytest.raises(TypeError, match="depht"):
        Plain(3, depht=4)


def test_options_that_json_cannot_hold_are_refused():
    with pytest.raises(AssertionError, match="word is Tensor"):
        Plain(3, word=torch.zeros(1))


def test_padding_goes_up_to_the_next_multiple_only():
    net = Plain(1)
    out = apply_padded(net, torch.rand(1, 1, 9, 16))
    assert net.seen == (16, 16)
    assert out.shape[-2:] == (9, 16)


def test_reflection_repeats_where_the_padding_exceeds_the_image():
    net = Plain(1)
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    apply_padded(net, torch.tensor([0.0, 1.0, 2.0]).expand(1, 1, 3, 3))
    assert seen[0][0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
