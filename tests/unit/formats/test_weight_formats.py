"""What a matrix is kept in: the same decision for leader and ranks, the same weights for one rank and for several."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from parallel.checkpoint.reader import Checkpoint, open_checkpoint
from parallel.formats import reading
from parallel.formats.choice import Matrix, format_of, matrices
from parallel.formats.kinds import QuantFormat, Quantization
from parallel.formats.quantise import quantise_int8
from parallel.formats.sizes import Holding, weight_bytes
from parallel.groups.base import TPGroup
from parallel.groups.solo import SoloGroup
from parallel.layers.linear import Linear
from parallel.layers.shard import Storage
from parallel.layers.vocab import VocabParallelEmbedding
from parallel.models.decoder import CausalLM
from parallel.models.loader import describe_weights, load_weights
from parallel.models.registry import build_model
from parallel.models.spec import ModelSpec
from parallel.ops.torch_matmul import has_packed_matmul
from parallel.ops.torch_ops import TorchOps
from parallel.sharding import ShardPlan
from tests.support.fake_tp_group import run_ranks
from tests.support.gguf_files import write_gguf
from tests.support.memory_checkpoint import MemoryCheckpoint
from tests.support.model_runner import ModelRunner, all_logits
from tests.support.storages import torch_storage
from tests.support.tiny_specs import a_spec

Q8_0, Q4_0, Q4_1 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1
F16 = GGMLQuantizationType.F16
UNEVEN = a_spec(
    hidden_size=64, num_heads=3, num_kv_heads=3, head_dim=32, intermediate_size=160, vocab_size=320, num_layers=2
)
TIED = a_spec(hidden_size=64, head_dim=32, intermediate_size=96, vocab_size=320, tie_word_embeddings=True)
UNALIGNED = a_spec(hidden_size=64, head_dim=8, intermediate_size=80, vocab_size=320)


def model_of(checkpoint: Checkpoint, group: TPGroup, storage: Storage) -> CausalLM:
    shard = ShardPlan.of(checkpoint.spec, group.world_size).ranks[group.rank]
    return build_model(checkpoint.spec, shard, group, storage)


def load(
    checkpoint: Checkpoint,
    quantization: Quantization,
    group: TPGroup | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[CausalLM, list[str]]:
    model = model_of(checkpoint, group or SoloGroup(), torch_storage(dtype))
    return model, load_weights(model, checkpoint, quantization, lambda done, total, detail: None)


def logits(checkpoint: Checkpoint, quantization: Quantization, group: TPGroup | None = None) -> dict[int, Tensor]:
    group = group or SoloGroup()
    model, _ = load(checkpoint, quantization, group)
    num_kv_heads = len(ShardPlan.of(checkpoint.spec, group.world_size).ranks[group.rank].kv_heads)
    return all_logits(ModelRunner(model, num_kv_heads, torch.float32).step)


def gguf_of(spec: ModelSpec, folder: Path, **kinds: GGMLQuantizationType) -> Checkpoint:
    """Return a random model in Q4_0, but tensors whose names end in a keyword in that kind."""
    tensors = {name: value.numpy() for name, value in MemoryCheckpoint(spec).values.items()}
    special = {name: kind for name in tensors for end, kind in kinds.items() if name.endswith(f"{end}.weight")}
    return open_checkpoint(write_gguf(folder / "tiny.gguf", spec, tensors, Q4_0, kinds=special))


@pytest.mark.parametrize(("spec", "world_size"), [(UNEVEN, 1), (UNEVEN, 2), (UNEVEN, 3), (TIED, 2), (UNALIGNED, 2)])
def test_the_leader_counts_the_matrices_that_layers_hold(spec: ModelSpec, world_size: int) -> None:
    checkpoint = MemoryCheckpoint(spec)
    for shard, held in zip(
        ShardPlan.of(spec, world_size).ranks,
        run_ranks(world_size, lambda group: held_by(checkpoint, group)),
        strict=True,
    ):
        assert sorted(matrices(spec, shard)) == sorted(held)


def held_by(checkpoint: Checkpoint, group: TPGroup) -> list[Matrix]:
    model = model_of(checkpoint, group, torch_storage())
    found: list[Matrix] = []
    seen: set[Tensor] = set()
    for path, layer in model.named_modules():
        if isinstance(layer, Linear | VocabParallelEmbedding) and layer.weight is not None and layer.weight not in seen:
            seen.add(layer.weight)
            parent = path.rpartition(".")[0]
            names = tuple(f"{f'{parent}.{shard.source}' if shard.source else path}.weight" for shard in layer.shards)
            num_outputs, num_inputs = layer.weight.shape
            found.append(Matrix(names, num_outputs, layer.shards[0].columns or range(num_inputs), ".layers." in path))
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "int8", "fp8"])
@pytest.mark.parametrize("spec", [UNEVEN, TIED])
def test_a_rank_takes_the_memory_that_was_planned(spec: ModelSpec, quantization: Quantization, dtype: str) -> None:
    checkpoint = MemoryCheckpoint(spec)
    storage_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    holding = Holding.of("torch", "cpu", dtype)._replace(copies_tied_head=dtype == "bfloat16" and has_packed_matmul())
    for rank, shard in enumerate(ShardPlan.of(spec, 2).ranks):
        taken = run_ranks(2, lambda group: load(checkpoint, quantization, group, storage_dtype)[0].weight_bytes)[rank]
        assert taken == weight_bytes(spec, shard, checkpoint.tensors, quantization, holding)


def test_quantised_matrices_take_their_bits_where_kernels_multiply_by_them() -> None:
    spec = TIED
    shard = ShardPlan.of(spec, 1).ranks[0]
    tensors = MemoryCheckpoint(spec).tensors
    num_vectors = (2 * spec.num_layers + 1) * spec.hidden_size
    num_weights = shard.num_parameters(spec) - num_vectors
    cases: list[tuple[str, Quantization, float]] = [
        ("cpu", "none", 16),
        ("cpu", "int8", 8.5),
        ("cuda", "none", 16),
        ("cuda", "int8", 8.5),
    ]
    for tier, quantization, bits in cases:
        found = weight_bytes(spec, shard, tensors, quantization, Holding.of(tier, tier, "bfloat16"))
        assert found == bits / 8 * num_weights + num_vectors * (4 if tier == "cpu" else 2)


def test_int4_takes_five_bits_a_weight_and_fp8_eight(tmp_path: Path) -> None:
    assert QuantFormat.INT4.num_bytes(64, 96) == 5 * 64 * 96 // 8
    assert QuantFormat.INT8.num_bytes(64, 96) == 8.5 * 64 * 96 / 8
    assert QuantFormat.FP8.num_bytes(64, 96) == 64 * (96 + 4)
    shard = ShardPlan.of(TIED, 1).ranks[0]
    tensors = gguf_of(TIED, tmp_path).tensors
    auto, none = (
        weight_bytes(TIED, shard, tensors, quantization, Holding.of("cpu", "cpu", "bfloat16"))
        for quantization in ("auto", "none")
    )
    assert 3.0 < none / auto < 3.2


@pytest.mark.parametrize("kind", [Q8_0, Q4_0, Q4_1])
def test_a_files_own_codes_give_the_logits_of_its_numbers(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    tensors = {name: value.numpy() for name, value in MemoryCheckpoint(UNEVEN).values.items()}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", UNEVEN, tensors, kind))
    dense = logits(checkpoint, "none")
    for row, found in logits(checkpoint, "auto").items():
        assert torch.equal(found, dense[row])


@pytest.mark.parametrize("quantization", ["auto", "int8"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_have_the_weights_of_one(quantization: Quantization, world_size: int, tmp_path: Path) -> None:
    checkpoint = gguf_of(UNEVEN, tmp_path, down_proj=Q8_0, lm_head=Q4_1)
    alone = logits(checkpoint, quantization)
    ranks = run_ranks(world_size, lambda group: logits(checkpoint, quantization, group))
    for row, expected in alone.items():
        torch.testing.assert_close(torch.cat([rank[row] for rank in ranks], dim=-1), expected, rtol=1e-4, atol=1e-4)


def test_int8_is_made_chunk_by_chunk_and_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = MemoryCheckpoint(TIED)
    name = "model.embed_tokens.weight"
    monkeypatch.setattr(reading, "_CHUNK_WEIGHTS", 64 * 50)
    found = reading.read_codes(checkpoint, QuantFormat.INT8, name, slice(10, 310), None)
    assert [read.num_values for read in checkpoint.reads] == [64 * 50] * 6
    whole = quantise_int8(checkpoint.values[name][10:310])
    assert whole is not None and torch.equal(found.codes_RI, whole.codes_RI)


def test_int8_of_a_file_in_eight_bits_is_the_files_own(tmp_path: Path) -> None:
    checkpoint = gguf_of(TIED, tmp_path, down_proj=Q8_0)
    name = "model.layers.1.mlp.down_proj.weight"
    found = reading.read_codes(checkpoint, QuantFormat.INT8, name, None, slice(32, 96))
    assert torch.equal(found.dequantised(), checkpoint.read(name, None, slice(32, 96)))


def test_pieces_of_several_formats_are_plain_and_say_so(tmp_path: Path) -> None:
    checkpoint = gguf_of(UNEVEN, tmp_path, **{"1.self_attn.v_proj": Q8_0, "0.mlp.up_proj": F16})
    model, reasons = load(checkpoint, "auto")
    assert len(reasons) == 2
    assert "layers.0.mlp.gate_proj.weight + model.layers.0.mlp.up_proj.weight of types Q4_0, F16" in reasons[0]
    shown = describe_weights(model, "torch", reasons)
    assert shown.op == "weights" and shown.reason == f"{reasons[0]}, and 1 more" and "9 matrices" in shown.detail
    assert load(checkpoint, "none")[1] == []
    dense = logits(checkpoint, "none")
    for row, found in logits(checkpoint, "auto").items():
        assert torch.equal(found, dense[row])


def test_inputs_that_are_no_whole_groups_are_plain_and_say_so() -> None:
    checkpoint = MemoryCheckpoint(UNALIGNED)
    _, reasons = load(checkpoint, "int8")
    assert len(reasons) == 2 and "mlp.down_proj.weight of types F32, inputs 0 to 80" in reasons[0]
    assert load(checkpoint, "auto")[1] == []


def test_each_quantization_has_its_matrices() -> None:
    tensors = MemoryCheckpoint(TIED).tensors
    inner, *_, ends = matrices(TIED, ShardPlan.of(TIED, 1).ranks[0])
    wanted: dict[Quantization, tuple[QuantFormat | None, QuantFormat | None]] = {
        "auto": (None, None),
        "none": (None, None),
        "int8": (QuantFormat.INT8, QuantFormat.INT8),
        "fp8": (QuantFormat.FP8, None),
    }
    for quantization, formats in wanted.items():
        assert tuple(format_of(matrix, tensors, quantization) for matrix in (inner, ends)) == formats


@pytest.mark.parametrize(("quantization", "least"), [("int8", 0.99), ("fp8", 0.95)])
def test_eight_bits_are_near_the_numbers(quantization: Quantization, least: float) -> None:
    checkpoint = MemoryCheckpoint(UNEVEN)
    exact = logits(checkpoint, "none")
    for row, found in logits(checkpoint, quantization).items():
        assert not torch.equal(found, exact[row])
        assert torch.cosine_similarity(found, exact[row], dim=-1).min() > least


@pytest.mark.parametrize("quantization", ["auto", "none", "int8", "fp8"])
@pytest.mark.parametrize("spec", [TIED, UNEVEN])
def test_matrices_without_memory_get_theirs_when_they_are_read(
    spec: ModelSpec, quantization: Quantization, tmp_path: Path
) -> None:
    checkpoint = gguf_of(spec, tmp_path, embed_tokens=F16)
    storage = Storage(torch.float32, torch.device("cpu"), TorchOps(torch.float32), are_matrices_late=True)
    model = model_of(checkpoint, SoloGroup(), storage)
    assert sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta) < 4000
    load_weights(model, checkpoint, quantization, lambda done, total, detail: None)
    assert not any(parameter.is_meta for parameter in model.parameters())
    expected = logits(checkpoint, quantization)
    for row, found in all_logits(ModelRunner(model, spec.num_kv_heads, torch.float32).step).items():
        assert torch.equal(found, expected[row])


def test_a_tied_head_is_given_the_weight_that_rows_are_looked_up_in(tmp_path: Path) -> None:
    given: list[object] = []

    class Watched(TorchOps):
        def matmul(self, weight_RI, bias_R):
            given.append(weight_RI)
            return super().matmul(weight_RI, bias_R)

        def embedding(self, weight_VD, head):
            assert head is not None and weight_VD is given[-1]
            return super().embedding(weight_VD, head)

    checkpoint = gguf_of(TIED, tmp_path, embed_tokens=Q8_0)
    model = model_of(checkpoint, SoloGroup(), Storage(torch.float32, torch.device("cpu"), Watched(torch.float32)))
    load_weights(model, checkpoint, "auto", lambda done, total, detail: None)
    assert len(given) == 1 + 4 * TIED.num_layers
