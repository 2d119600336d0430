"""The split of a model over ranks, for any sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Unshardable
from parallel.models.spec import ModelSpec
from parallel.sharding import MAX_UNIT, ShardPlan
from tests.support.tiny_specs import a_spec


@st.composite
def specs_and_sizes(draw: st.DrawFn) -> tuple[ModelSpec, int]:
    num_kv_heads = draw(st.integers(1, 12))
    group_size = draw(st.integers(1, 8))
    spec = a_spec(
        hidden_size=draw(st.sampled_from([32, 576, 4096])),
        num_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([8, 64, 128])),
        intermediate_size=draw(st.one_of(st.integers(1, 300), st.integers(1, 300).map(lambda n: 32 * n))),
        vocab_size=draw(st.integers(1, 3000)),
    )
    return spec, draw(st.integers(1, 16))


def plan_or_none(spec: ModelSpec, world_size: int) -> ShardPlan | None:
    try:
        return ShardPlan.of(spec, world_size)
    except Unshardable:
        return None


def joined(parts: list[range]) -> list[int]:
    return [item for part in parts for item in part]


@given(specs_and_sizes())
def test_query_heads_ffn_columns_and_vocabulary_are_covered_exactly_once_in_rank_order(case):
    spec, world_size = case
    if plan := plan_or_none(spec, world_size):
        assert joined([shard.query_heads for shard in plan.ranks]) == list(range(spec.num_heads))
        assert joined([shard.ffn for shard in plan.ranks]) == list(range(spec.intermediate_size))
        assert joined([shard.vocab for shard in plan.ranks]) == list(range(spec.vocab_size))


@given(specs_and_sizes())
def test_a_rank_has_the_kv_heads_of_its_query_heads_and_no_others(case):
    spec, world_size = case
    if plan := plan_or_none(spec, world_size):
        for shard in plan.ranks:
            assert sorted({head // spec.group_size for head in shard.query_heads}) == list(shard.kv_heads)
            # Grouped attention needs as many query heads to each of the rank's KV heads.
            assert len(shard.query_heads) % len(shard.kv_heads) == 0


@given(specs_and_sizes())
def test_kv_heads_are_held_once_or_all_equally_often(case):
    spec, world_size = case
    if plan := plan_or_none(spec, world_size):
        held = joined([shard.kv_heads for shard in plan.ranks])
        copies = max(1, world_size // spec.num_kv_heads)
        assert held == [head for head in range(spec.num_kv_heads) for _ in range(copies)]


@given(specs_and_sizes())
def test_no_rank_is_without_heads_columns_or_vocabulary(case):
    spec, world_size = case
    if plan := plan_or_none(spec, world_size):
        for shard in plan.ranks:
            assert shard.query_heads and shard.kv_heads and shard.ffn and shard.vocab


@given(specs_and_sizes())
def test_every_size_up_to_the_kv_heads_works_for_a_model_of_usual_proportions(case):
    spec, _ = case
    if min(spec.intermediate_size, spec.vocab_size) >= spec.num_kv_heads:
        for world_size in range(1, spec.num_kv_heads + 1):
            assert len(ShardPlan.of(spec, world_size).ranks) == world_size


@given(specs_and_sizes())
def test_ranks_differ_by_one_unit_of_columns_unless_a_rank_is_at_its_least(case):
    spec, world_size = case
    if plan := plan_or_none(spec, world_size):
        # In thirds of a column, so that they are whole.
        loads = [
            2 * spec.head_dim * (len(shard.query_heads) + len(shard.kv_heads)) + 3 * len(shard.ffn)
            for shard in plan.ranks
        ]
        # A rank above the lightest by more than a unit got nothing but the unit that every rank has.
        for shard, load in zip(plan.ranks, loads, strict=True):
            assert load <= min(loads) + 3 * MAX_UNIT or len(shard.ffn) <= MAX_UNIT


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_sizes_that_divide_are_split_evenly(world_size):
    spec = a_spec(
        hidden_size=4096, num_heads=32, num_kv_heads=8, head_dim=128, intermediate_size=14336, vocab_size=128256
    )
    for rank, shard in enumerate(ShardPlan.of(spec, world_size).ranks):
        assert shard.kv_heads == range(rank * 8 // world_size, (rank + 1) * 8 // world_size)
        assert len(shard.ffn) == 14336 // world_size
        assert len(shard.vocab) == 128256 // world_size


def test_smollm2_on_two_ranks_gives_the_rank_with_more_heads_fewer_columns():
    first, second = ShardPlan.of(smollm2(), 2).ranks
    assert (len(first.query_heads), len(first.kv_heads)) == (6, 2)
    assert (len(second.query_heads), len(second.kv_heads)) == (3, 1)
    assert (len(first.ffn), len(second.ffn)) == (672, 864)
    ratio = first.num_parameters(smollm2()) / second.num_parameters(smollm2())
    assert ratio == pytest.approx(1, abs=0.02)


def test_more_ranks_than_kv_heads_share_kv_heads_and_divide_their_query_heads():
    plan = ShardPlan.of(a_spec(num_heads=16, num_kv_heads=2, intermediate_size=256), 8)
    assert [shard.kv_heads.start for shard in plan.ranks] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [len(shard.query_heads) for shard in plan.ranks] == [2] * 8


def test_a_size_that_cannot_work_is_refused_with_the_sizes_that_do():
    with pytest.raises(Unshardable, match=r"num_key_value_heads=3 .* tensor_parallel_size=4; use 1, 2, 3 or 9$"):
        ShardPlan.of(smollm2(), 4)


@pytest.mark.parametrize("world_size", [0, -1, 1000])
def test_senseless_sizes_are_refused(world_size):
    with pytest.raises(Unshardable):
        ShardPlan.of(smollm2(), world_size)


def test_a_tied_embedding_counts_once():
    untied = ShardPlan.of(a_spec(tie_word_embeddings=False), 1).ranks[0]
    spec = a_spec(tie_word_embeddings=True)
    assert untied.num_parameters(a_spec(tie_word_embeddings=False)) - untied.num_parameters(spec) == (
        spec.vocab_size * spec.hidden_size
    )


def smollm2() -> ModelSpec:
    return a_spec(
        hidden_size=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=49152,
        num_layers=30,
    )
