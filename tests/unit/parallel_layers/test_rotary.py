"""Rotation against the definition: pairs (i, i + E/2) as complex numbers times e^(i * position * frequency)."""

import pytest
import torch

from parallel.layers.rotary import RotaryEmbedding
from parallel.models.spec import RopeSpec
from parallel.ops.torch_ops import rotate
from tests.support.storages import torch_storage

LLAMA3 = RopeSpec(500000.0, "llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=8192)


@pytest.mark.parametrize("rope", [RopeSpec(), RopeSpec(1e6, "linear", factor=4.0), LLAMA3])
def test_heads_are_turned_by_position_times_frequency(rope):
    x_THE = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0))
    positions_T = torch.tensor([0, 1, 7, 100, 5000])
    rotation_TE = RotaryEmbedding(rope, 16, torch_storage())(positions_T)
    frequencies = torch.from_numpy(rope.inverse_frequencies(16))
    angles_T1F = (positions_T[:, None] * frequencies)[:, None]
    turned = torch.complex(x_THE[..., :8], x_THE[..., 8:]) * torch.polar(torch.ones_like(angles_T1F), angles_T1F)
    torch.testing.assert_close(rotate(x_THE, rotation_TE), torch.cat((turned.real, turned.imag), dim=-1))


def test_rotation_keeps_the_precision_of_the_heads_and_does_not_overwrite_them():
    x_THE = torch.ones(1, 2, 8, dtype=torch.bfloat16)
    rotation_TE = RotaryEmbedding(RopeSpec(), 8, torch_storage(torch.bfloat16))(torch.tensor([3]))
    assert rotate(x_THE, rotation_TE).dtype == torch.bfloat16
    assert torch.equal(x_THE, torch.ones_like(x_THE))
