"""Weights in packed form multiply as plain ones do, and replace them."""

import gc
import weakref

import pytest
import torch
from torch.nn.functional import linear

from parallel.layers.linear import ColumnParallelLinear
from parallel.layers.vocab import VocabParallelEmbedding, VocabParallelHead
from parallel.ops.torch_matmul import PackedMatmul, PlainMatmul, fastest_matmul, has_packed_matmul
from tests.support.fake_tp_group import run_ranks
from tests.support.storages import torch_storage

BFLOAT = torch_storage(torch.bfloat16)

needs_packing = pytest.mark.skipif(not has_packed_matmul(), reason="this CPU or torch has no packed bfloat16 product")


@needs_packing
@pytest.mark.parametrize("shape", [(960, 576), (7, 5), (1, 1), (672, 33)])
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 8, 200])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_products_are_plain_products_within_bfloat16_rounding(shape, num_tokens, has_bias):
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(shape, generator=generator).bfloat16()
    x_TI = torch.randn(num_tokens, shape[1], generator=generator).bfloat16()
    bias_O = torch.randn(shape[0], generator=generator).bfloat16() if has_bias else None
    with torch.inference_mode():
        packed_TO = PackedMatmul(weight_OI, bias_O)(x_TI)
    plain_TO = linear(x_TI, weight_OI, bias_O)
    torch.testing.assert_close(packed_TO.float(), plain_TO.float(), rtol=2**-7, atol=2**-7 * shape[1] ** 0.5)


@needs_packing
def test_a_packed_layer_lets_go_of_its_plain_weight():
    layer = ColumnParallelLinear(16, range(8), False, BFLOAT)
    plain = weakref.ref(next(layer.parameters()).fill_(0.5))
    layer.pack(layer.weight.detach())
    gc.collect()
    assert plain() is None
    assert list(layer.parameters()) == []
    assert layer.matmul.name == "packed"
    assert layer.matmul.num_bytes == 8 * 16 * 2
    assert layer(torch.ones(1, 16, dtype=torch.bfloat16)).tolist() == [[8.0] * 8]


@needs_packing
def test_a_layer_that_nobody_packed_is_packed_once_when_it_is_used():
    layer = ColumnParallelLinear(16, range(8), False, BFLOAT)
    layer.weight.fill_(0.5)
    assert layer(torch.ones(1, 16, dtype=torch.bfloat16)).tolist() == [[8.0] * 8]
    matmul = layer.matmul
    layer(torch.ones(1, 16, dtype=torch.bfloat16))
    assert layer.matmul is matmul


@needs_packing
def test_packing_a_tied_head_leaves_the_embedding_its_weight():
    def solo(group):
        tokens = VocabParallelEmbedding(range(10), 4, group, BFLOAT)
        tokens.weight.copy_(torch.arange(40).view(10, 4))
        head = VocabParallelHead(tokens.weight, range(10), BFLOAT)
        head.pack(tokens.weight.detach())
        tokens.pack(tokens.weight.detach(), head.matmul)
        return tokens(torch.tensor([9])), head(torch.ones(1, 4, dtype=torch.bfloat16))

    [(embedded, logits)] = run_ranks(1, solo)
    assert embedded.tolist() == [[36, 37, 38, 39]]
    assert logits[0, :3].tolist() == [6, 22, 38]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_precisions_stay_plain(dtype):
    assert isinstance(fastest_matmul(torch.zeros(4, 4, dtype=dtype), None), PlainMatmul)


def test_an_empty_slice_stays_plain():
    assert isinstance(fastest_matmul(torch.zeros(4, 0, dtype=torch.bfloat16), None), PlainMatmul)
