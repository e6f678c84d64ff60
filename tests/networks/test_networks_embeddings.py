"""Patches, positions, times and labels, against their formulas by loops."""

from __future__ import annotations

import math

import pytest
import torch

from lit_restore.errors import UserError
from lit_restore.networks.embeddings import (
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    check_input,
    check_labels,
    drop_path,
    modulate,
    sincos_2d,
    sizes,
    timestep_features,
    unpatchify,
)


def test_sincos_is_column_then_row_each_sin_then_cos():
    width, height_tokens, width_tokens = 16, 3, 5
    table = sincos_2d(width, height_tokens, width_tokens)
    assert table.dtype == torch.float32
    for row in range(height_tokens):
        for column in range(width_tokens):
            waves = [10000 ** (-k / (width / 4)) for k in range(width // 4)]
            expected = [
                f(place * wave) for place in (column, row) for f in (math.sin, math.cos)
                for wave in waves
            ]  # fmt: skip
            found = table[row * width_tokens + column].tolist()
            assert found == pytest.approx(expected, abs=1e-6)


def test_sincos_needs_a_width_of_fours():
    with pytest.raises(UserError, match=r"^width: 6 is no multiple of 4"):
        sincos_2d(6, 2, 2)


def test_timestep_features_are_cos_then_sin_of_the_scaled_time():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    features = timestep_features(t, 8, scale=1000.0)
    for row, time in zip(features.tolist(), [0.0, 300.0, 1000.0], strict=True):
        angles = [time * math.exp(-math.log(1e4) * k / 4) for k in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row == pytest.approx(expected, abs=1e-12)


def test_timestep_features_of_half_precision_times_are_computed_in_single():
    t = torch.tensor([0.3], dtype=torch.bfloat16)
    features = timestep_features(t, scale=1000.0)
    assert features.dtype == torch.float32
    assert (features - timestep_features(t.double(), scale=1000.0)).abs().max() < 1e-3


def test_timestep_embedder_is_an_mlp_of_the_features_in_the_weights_type():
    embedder = TimestepEmbedder(12, 1000.0)
    t = torch.tensor([0.1, 0.9])
    assert torch.equal(embedder(t), embedder.mlp(timestep_features(t, 256, 1000.0)))
    assert embedder.bfloat16()(t).dtype == torch.bfloat16
    assert embedder.double()(t.double()).dtype == torch.float64


def test_no_label_is_the_last_row():
    embedder = LabelEmbedder(3, 4)
    table = embedder.embedding_table.weight
    assert table.shape == (4, 4)
    assert torch.equal(embedder(None, 2), table[[3, 3]])
    assert torch.equal(embedder(torch.tensor([2, 3]), 2), table[[2, 3]])


def test_patches_and_unpatchify_are_inverse_and_in_row_major_order():
    picture = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    embed = PatchEmbed(3, 12, 2)
    with torch.no_grad():
        embed.proj.bias.zero_()
        # Output (row, column, channel) of a patch is that very value.
        unit = torch.eye(12).view(2, 2, 3, 12).permute(3, 2, 0, 1)
        embed.proj.weight.copy_(unit)
    tokens = embed(picture)
    for number in range(6):
        row, column = divmod(number, 3)
        patch = picture[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(tokens[:, number], patch.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(unpatchify(tokens, (2, 3), 2, 3), picture)


def test_modulate_is_affine_by_sample_and_channel():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    shift, scale = torch.tensor([[1.0] * 4, [2.0] * 4]), torch.tensor([[0.5] * 4, [-1.0] * 4])
    assert torch.allclose(modulate(x, shift, scale)[0], 1.5 * x[0] + 1)
    assert torch.equal(modulate(x, shift, scale)[1], torch.full((3, 4), 2.0))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    out = drop_path(x, 0.25, True).flatten(1)
    assert (out == out[:, :1]).all()
    assert sorted(set(out[:, 0].tolist())) == pytest.approx([0.0, 4 / 3])
    # Five standard deviations of the mean of 4000 draws.
    assert float(out.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(1 / 3 / 4000))


def test_drop_path_is_nothing_outside_training_or_at_rate_zero():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert drop_path(x, 0.5, False) is x
    assert drop_path(x, 0.0, True) is x


def test_sizes_are_one_number_or_two():
    assert sizes(8, 2) == ((8, 8), (4, 4))
    assert sizes([8, 12], 4) == ((8, 12), (2, 3))


@pytest.mark.parametrize("size", [0, -2, [8], [8, 8, 8], [8, 0], "88", True, [8, 9]])
def test_sizes_that_are_none_are_refused_by_name(size):
    with pytest.raises(UserError) as caught:
        sizes(size, 2)
    assert caught.value.where == "size"


def test_wrong_inputs_are_refused_in_one_line():
    check_input(torch.zeros(2, 4, 8, 16), 4, (8, 16))
    with pytest.raises(UserError, match=r"^x: the network takes 4x8x16, got 4x16x8$"):
        check_input(torch.zeros(2, 4, 16, 8), 4, (8, 16))
    check_labels(None, 0)
    check_labels(torch.zeros(1), 3)
    with pytest.raises(UserError, match=r"^y: labels were given to a network of classes: 0"):
        check_labels(torch.zeros(1), 0)


def test_drop_path_is_compiled_once_for_all_rates():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(drop_path, backend=count)
    for k in range(1, 6):
        compiled(torch.ones(3, 2), 0.1 * k, True)
    # One for the first number, one for any.
    assert len(graphs) <= 2
