"""The GPU benchmark says when there is no GPU, counts its bounds rightly, loses nothing, and its sections run."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bounds
from benchmarks.gpu.shapes import LLAMA_8B, QWEN_0_6B
from parallel.cuda.support import has_triton
from parallel.sharding import ShardPlan

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed: pip install triton")


def test_without_a_gpu_nothing_is_measured_and_the_exit_code_is_2(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert command.main(["--results", str(tmp_path / "results.json")]) == 2
    assert "nothing was measured: torch sees no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_arguments_name_sections_and_models(capsys):
    options = command.parse(["--results", "x.json", "--sections", "rates", "two ranks", "--models", "0.6B"])
    assert (options.sections, options.models, options.seconds) == (["rates", "two ranks"], ["0.6B"], 540)
    assert tuple(command.parse(["--results", "x.json"]).sections) == command.SECTIONS
    with pytest.raises(SystemExit):
        command.parse(["--results", "x.json", "--sections", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


@needs_triton
def test_neither_ray_nor_pydantic_is_imported():
    code = (
        "import sys, benchmarks.gpu.__main__, benchmarks.gpu.plan, benchmarks.gpu.targets;"
        "sys.exit(' '.join({'ray', 'pydantic', 'transformers', 'engine'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("spec", [LLAMA_8B, QWEN_0_6B], ids=["8B", "0.6B"])
def test_counted_weights_are_the_models(spec):
    norms = spec.num_layers * (2 * spec.hidden_size + (2 * spec.head_dim if spec.qk_norm else 0)) + spec.hidden_size
    embeddings = (1 if spec.tie_word_embeddings else 2) * bounds.head_weights(spec)
    total = ShardPlan.of(spec, 1).ranks[0].num_parameters(spec)
    assert bounds.inner_weights(spec) + embeddings + norms == total


def test_a_decode_step_reads_weights_once_and_every_rows_context():
    assert bounds.kv_bytes_per_token(LLAMA_8B, "bf16") == 131072
    assert bounds.kv_bytes_per_token(LLAMA_8B, "int8") == 2 * 32 * 8 * (128 + 4)
    alone = bounds.decode_bytes(LLAMA_8B, "bf16", "bf16", 1, 0)
    assert alone == pytest.approx(15.0e9, rel=0.01), "8.03 G weights without the 0.53 G of the embedding"
    assert bounds.decode_bytes(LLAMA_8B, "bf16", "bf16", 256, 1024) - alone == 256 * 1024 * 131072
    assert bounds.decode_bytes(LLAMA_8B, "fp8", "bf16", 1, 0) == alone - bounds.inner_weights(LLAMA_8B)


def test_a_prompts_arithmetic_grows_with_its_square():
    without_attention = 2 * bounds.inner_weights(LLAMA_8B) * 8192 + 2 * bounds.head_weights(LLAMA_8B)
    assert bounds.prefill_flops(LLAMA_8B, 8192) - without_attention == 4 * 32 * 4096 * 8192**2 / 2
    assert bounds.share(1.0, 2.0) == 0.5


@pytest.fixture(scope="module")
def rig():
    pytest.importorskip("triton")
    import tests.support.kernel_device  # noqa: F401  (before any kernel is made)
    from benchmarks.gpu.rig import Rig
    from parallel.cuda.device import Repeater

    return Rig(Repeater(), num_multiprocessors=1, dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny():
    return replace(
        LLAMA_8B, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=32,
        vocab_size=64, dtype="float32",
    )  # fmt: skip


@needs_triton
def test_a_row_that_fails_is_reported_and_the_others_are_taken_and_saved(rig):
    from benchmarks.gpu.sections import Report, Row, Section

    def fail():
        raise ValueError("no such kernel")

    def rows():
        yield Row("first", lambda: {"us": 1.0})
        yield Row("second", fail)
        yield Row("third", lambda: {"us": 3.0})
        raise OSError("no more rows")

    saved, shown = [], []
    report = Report(lambda sections: saved.append(json.dumps(sections)), 10.0, iter(range(100)).__next__)
    report.run(Section("kernels", rows), rig, shown.append)
    found = report.sections["kernels"]
    assert [found[name].get("us") for name in ("first", "second", "third")] == [1.0, None, 3.0]
    assert (
        found["second"]["failed"] == "ValueError: no such kernel" and "test_gpu_benchmark.py" in found["second"]["at"]
    )
    assert found["section"]["failed"] == "OSError: no more rows"
    assert [len(json.loads(text)["kernels"]) for text in saved] == [1, 2, 3, 4]
    assert len(shown) == 4


@needs_triton
def test_when_time_is_over_rows_are_skipped_and_say_so(rig):
    from benchmarks.gpu.sections import Report, Row, Section

    report = Report(lambda sections: None, 10.0, itertools.count(11).__next__)
    report.run(Section("decode", lambda: iter([Row("late", dict)])), rig, lambda line: None)
    assert "no time left" in report.sections["decode"]["late"]["skipped"]


@needs_triton
def test_a_model_is_measured_in_steps_replays_and_a_prompt(rig, tiny):
    from benchmarks.gpu.bounds import Rates
    from benchmarks.gpu.decode import ModelRows, Sizes

    sizes = Sizes(batches=(1, 2), context_len=20, num_steps=2, prompt_len=24)
    rows = ModelRows(rig, Rates(1e9, 1e9), tiny, ("bf16", "int8"), sizes).rows("tiny")
    found = {row.name: row.measure() for row in rows}
    assert list(found) == [
        f"tiny bf16, KV int8: {what}" for what in ("load and record", "decode 1", "decode 2", "prefill 24")
    ]
    for name in ("decode 1", "decode 2"):
        figures = found[f"tiny bf16, KV int8: {name}"]
        assert figures["tokens_per_s"] > 0 and figures["step_over_replay"] > 0
    assert found["tiny bf16, KV int8: prefill 24"]["share_of_matmul_rate"] > 0


@needs_triton
def test_a_trace_gives_every_request_its_tokens(rig, tiny):
    from benchmarks.gpu.trace import measure_trace, mixed_requests

    requests = mixed_requests(3, shortest=2, longest=5)
    figures = measure_trace(rig, tiny, requests, max_rows=2, max_step_tokens=6)
    assert figures["output_tokens"] == sum(request.output_len for request in requests)


@needs_triton
def test_a_traces_plans_stay_in_their_budget_and_every_block_has_one_owner():
    from benchmarks.gpu.trace import TracePlanner, mixed_requests
    from parallel.plan import unpack_integers

    requests = mixed_requests(40)
    assert all(100 <= length <= 1024 for request in requests for length in (request.prompt_len, request.output_len))
    assert requests == mixed_requests(40) != mixed_requests(40, seed=1)
    owner, num_sampled = {}, 0
    for plan in TracePlanner(requests, max_rows=8, max_step_tokens=1500, num_blocks=8 * 128).plans():
        owner = {block: row for block, row in owner.items() if row not in plan.freed}
        for part in (*plan.started, *plan.appended):
            assert not owner.keys() & part.block_ids
            owner |= dict.fromkeys(part.block_ids, part.row)
        num_decodes = len(unpack_integers(plan.decodes))
        assert num_decodes + sum(chunk.num_tokens for chunk in plan.chunks) <= 1500
        num_sampled += num_decodes + len(plan.chunks)
    assert num_sampled == sum(request.output_len for request in requests)


@needs_triton
def test_kernels_are_compared_with_tier_0(rig):
    from benchmarks.gpu.kernels import KernelShapes, kernel_rows
    from parallel.ops.base import HeadShape

    shapes = KernelShapes(
        widths=(32,),
        heads=(HeadShape(2, 1, 16),),
        steps=(("mixed", ((1, 20), (5, 5))),),
        matrices=((32, 64),),
        batches=(3,),
        vocabulary=100,
        sampled_rows=5,
        repeats=1,
    )
    found = {row.name: row.measure() for row in kernel_rows(rig, shapes)}
    assert len(found) == 12
    assert not [name for name, figures in found.items() if not figures["is_right"]]


@needs_triton
def test_goals_are_shown_beside_what_was_reached():
    from benchmarks.gpu.targets import TARGETS, compare, table

    sections = {
        "decode": {"8B bf16, KV bf16: decode 1": {"share_of_bandwidth": 0.8, "step_over_replay": 1.2}},
        "kernels": {"embedding": {"is_right": True}, "best": {"failed": "out of memory"}},
    }
    rows = compare(sections)
    assert len(rows) == len(TARGETS) + 1
    assert [row["is_reached"] for row in rows if row["found"] is not None] == [True, False, False]
    text = table(rows)
    assert "decode 1, share_of_bandwidth: 0.8 (goal >= 0.75) reached" in text
    assert "prefill 8192, share_of_matmul_rate: not measured (goal >= 0.5) NOT reached" in text
    assert "all 2, wrong or failed: 1 (goal <= 0) NOT reached" in text


def test_a_commit_that_git_cannot_tell_is_taken_from_the_command(monkeypatch):
    from datetime import UTC, datetime

    head = command.origin_of(datetime.now(UTC), "abc123")
    assert head["commit"] == "abc123"
    assert {"torch", "cuda"} <= head["versions"].keys()
