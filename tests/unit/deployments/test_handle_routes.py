"""Routing for foreign deployments: red if a call leaks its count, or a prompt's beginning is not recognised."""

from types import SimpleNamespace

import pytest

from core.errors import InvalidConfig
from deployments.handle_routes import DEFAULT_MAX_TOKENS, HandleRequest, HandleRoutes, HandleRoutesConfig

PROMPT = b"An instruction that all requests of one application begin with. " * 40


def routes(**fields) -> HandleRoutes:
    return HandleRoutes(HandleRoutesConfig.parse(fields, "test"))


def request(end: str, beginning: bytes = PROMPT) -> HandleRequest:
    return HandleRequest(beginning + end.encode())


def test_a_prompts_beginning_brings_later_requests_to_the_same_replica():
    world = routes()
    first = world.choose("0", ["a", "b"], request("one"))
    world.end("0", first)
    assert {world.choose(f"{n}", ["a", "b"], request(f"{n}")) for n in range(1, 3)} == {first}


def test_a_burst_of_one_prompt_follows_its_first_request_until_work_outweighs_the_prefix():
    world = routes()
    picked = [world.choose(f"{n}", ["a", "b"], request(f"{n} " * 300 * n)) for n in range(12)]
    assert picked[1] == picked[0]
    assert set(picked) == {"a", "b"}


def test_unlike_prompts_spread():
    world = routes()
    picked = [world.choose(f"{n}", ["a", "b"], request("", bytes([n]) * 4000)) for n in range(20)]
    assert picked.count("a") == 10


def test_an_ended_call_leaves_nothing_behind():
    world = routes(policy="least-tokens")
    for number in range(6):
        replica_id = world.choose(f"{number}", ["a", "b"], request(""))
        assert replica_id == "ab"[number % 2]
        world.end(f"{number}", replica_id)
        world.end(f"{number}", replica_id)


def test_a_call_that_chooses_again_counts_once_and_a_late_end_of_the_first_choice_does_not_end_it():
    world = routes(policy="least-tokens")
    refusing = world.choose("0", ["a", "b"], request(""))
    chosen = world.choose("0", ["b"], request(""))
    assert (refusing, chosen) == ("a", "b")
    world.end("0", refusing)
    assert world.choose("1", ["b", "a"], request("")) == "a"


def test_replicas_that_are_gone_are_forgotten():
    world = routes()
    first = world.choose("0", ["a", "b"], request("one"))
    other = "b" if first == "a" else "a"
    world.end("0", first)
    world.keep_only([other])
    world.end("0", first)
    assert world.choose("1", ["a", "b"], request("two")) == other  # neither knows the prompt; it is the other's turn


@pytest.mark.parametrize(
    ("arguments", "prompt", "max_tokens"),
    [
        (["Hello"], b"Hello", DEFAULT_MAX_TOKENS),
        ([7, {"prompt": "Hello", "max_tokens": 5}], b"Hello", 5),
        ([SimpleNamespace(messages=[{"role": "user", "content": "Hi"}])], b'[{"role":"user","content":"Hi"}]', 256),
        ([{"messages": [SimpleNamespace(role="user")], "max_completion_tokens": 3}], b'[{"role":"user"}]', 3),
        ([object(), None, 3], b"", DEFAULT_MAX_TOKENS),
        ([{"prompt": [1, 2], "max_tokens": None}], b"[1,2]", DEFAULT_MAX_TOKENS),
    ],
)
def test_prompts_are_found_in_the_usual_places(arguments, prompt, max_tokens):
    assert HandleRequest.of(arguments) == HandleRequest(prompt, max_tokens)


def test_an_unknown_policy_is_refused_with_those_there_are():
    with pytest.raises(InvalidConfig, match=r"no such routing policy; use one of cost, .*sglang"):
        routes(policy="best")
