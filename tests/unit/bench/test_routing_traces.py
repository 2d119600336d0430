import json
from pathlib import Path

import pytest

from benchmarks.routing.capacity import GRID, capacity
from benchmarks.routing.slo import MissCounter, Outcome, Slo, figures
from benchmarks.routing.traces import Arrival, Trace, hot_prefixes, lengths_csv, mooncake

THREE = Trace("three", 30.0, tuple(Arrival(10.0 * index, 1000, 10, (index,)) for index in range(3)))


def test_mooncake_rows_keep_ids_of_full_blocks_only_and_are_spread_within_their_tick(tmp_path: Path):
    rows = [
        {"timestamp": 3000, "input_length": 1300, "output_length": 5, "hash_ids": [7, 8, 9]},
        {"timestamp": 0, "input_length": 100, "output_length": 0, "hash_ids": [1]},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = mooncake(path, seed=1).arrivals
    assert (first.num_prompt_tokens, first.num_output_tokens, first.block_ids) == (100, 1, ())
    assert second.block_ids == (7, 8)
    assert 0 <= first.at_s < 3 <= second.at_s < 6


def test_csv_rows_share_nothing(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens,client_id\n1.5,300,40,9\n")
    assert lengths_csv(path).arrivals == (Arrival(1.5, 300, 40),)


def test_hot_prefixes_are_the_same_for_one_seed_and_shared_by_rank():
    trace = hot_prefixes(seed=5, num_requests=400)
    assert trace == hot_prefixes(seed=5, num_requests=400)
    heads = [arrival.block_ids[:12] for arrival in trace.arrivals]
    assert heads.count(tuple(range(12))) == max(map(heads.count, heads)) > 20
    tails = [arrival.block_ids[12:] for arrival in trace.arrivals if len(arrival.block_ids) > 12]
    assert len(set(tails)) == len(tails)


def test_rate_changes_times_and_nothing_else():
    squeezed = THREE.at_rate(1.0)
    assert squeezed.rate_per_s == pytest.approx(1.0)
    assert [arrival.at_s for arrival in squeezed.arrivals] == pytest.approx([0.0, 1.0, 2.0])
    assert THREE.first(2).rate_per_s == pytest.approx(THREE.rate_per_s)


def test_copies_of_a_trace_share_no_blocks():
    double = THREE.superposed(2, seed=1)
    assert double.rate_per_s == pytest.approx(2 * THREE.rate_per_s)
    assert len({arrival.block_ids for arrival in double.arrivals}) == 6
    assert all(0 <= arrival.at_s < 30 for arrival in double.arrivals)


def served(index: int, ttft_s: float, tpot_s: float = 0.01) -> Outcome:
    at_s = float(index)
    return Outcome(Arrival(at_s, 1200, 11), at_s + ttft_s, at_s + ttft_s + 10 * tpot_s)


def test_longer_prompts_may_take_longer_to_answer():
    slo = Slo()
    assert slo.is_met(served(0, ttft_s=1.29)) and not slo.is_met(served(0, ttft_s=1.31))
    assert not slo.is_met(served(0, ttft_s=0.1, tpot_s=0.11))


def test_warm_up_counts_for_nothing_and_a_failed_request_misses():
    outcomes = [served(0, 99.0), *(served(index, 0.5) for index in range(1, 9)), Outcome(Arrival(9.0, 1200, 11))]
    outcomes[-1].has_failed = True
    result = figures(outcomes, Slo())
    assert (result.num_requests, result.num_failed, result.ttft_mean_s) == (9, 1, pytest.approx(0.5))
    assert result.attainment == pytest.approx(8 / 9)


def test_run_is_lost_as_soon_as_too_many_have_missed():
    counter = MissCounter(Slo(), attainment=0.9, num_requests=100)
    for index in range(19):
        counter.note(index, served(index, 9.0))
    assert not counter.is_lost, "10 are warm-up, and 9 of 90 may miss"
    counter.note(19, served(19, 9.0))
    assert counter.is_lost


@pytest.mark.parametrize("truth", [0.3, 0.95, 1.0, 1.7, 40.0])
def test_capacity_is_the_last_rate_of_the_grid_below_the_truth(truth: float):
    found = {capacity(lambda rate: rate <= truth, guess) for guess in (1.3, truth)}
    assert len(found) == 1, "one grid, whatever the guess"
    assert found.pop() <= truth < GRID * capacity(lambda rate: rate <= truth, guess_per_s=1.3)
