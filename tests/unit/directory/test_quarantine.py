"""Who is suspected, who is convicted, and what is refused afterwards."""

import msgspec
import pytest

from deployments.groups.quarantine import Quarantine, Strikes
from tests.support.fake_clock import FakeClock
from tests.support.fake_target import generation_request


def strikes_after(*num_tokens: int) -> Strikes:
    strikes = Strikes()
    for num in num_tokens:
        strikes.died(num, was_alone=True)
    return strikes


@pytest.mark.parametrize(
    ("num_tokens", "is_suspect", "is_convicted"),
    [
        ([], False, False),
        ([0], False, False),
        ([0, 0], True, False),
        ([0, 0, 0], True, True),
        ([0, 0, 1], False, False),
        ([0, 1, 0, 1, 0, 1], False, False),
        ([1] * 7, True, False),
        ([1] * 8, True, True),
        ([1] * 7 + [16], False, False),
        ([100] * 50, False, False),
    ],
)
def test_new_tokens_clear_a_request_and_deaths_in_a_row_convict_it(num_tokens, is_suspect, is_convicted):
    strikes = strikes_after(*num_tokens)
    assert (strikes.is_suspect, strikes.is_convicted) == (is_suspect, is_convicted)


def test_one_that_was_never_tried_alone_gets_twice_as_many_attempts():
    strikes = Strikes()
    for _ in range(5):
        strikes.died(0, was_alone=False)
    assert not strikes.is_convicted
    strikes.died(0, was_alone=False)
    assert strikes.is_convicted


@pytest.mark.parametrize(("num_tokens", "clearing"), [([0, 0], 1), ([1] * 7, 16)])
def test_a_suspect_is_cleared_by_what_its_former_attempts_did_not_bring(num_tokens, clearing):
    strikes = strikes_after(*num_tokens)
    assert not strikes.is_cleared_by(clearing - 1)
    assert strikes.is_cleared_by(clearing)


def test_a_convicted_request_is_refused_until_its_time_is_over():
    clock = FakeClock()
    quarantine = Quarantine(clock, period_s=600)
    quarantine.add("tiny", generation_request("r1"))
    assert quarantine.has("tiny", generation_request("another id"))
    clock.advance(599)
    assert quarantine.has("tiny", generation_request("r2"))
    clock.advance(1)
    assert not quarantine.has("tiny", generation_request("r3"))
    assert len(quarantine) == 0


def test_a_request_sent_again_is_known_by_prompt_and_sampling_and_not_by_its_seed_or_what_was_emitted():
    quarantine = Quarantine(FakeClock())
    request = generation_request("r1")
    quarantine.add("tiny", request)
    reseeded = msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, seed=99))
    assert quarantine.has("tiny", reseeded)
    assert quarantine.has("tiny", msgspec.structs.replace(request, token_ids=[*request.token_ids, 7]))
    hotter = msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, temperature=0.5))
    others = [hotter, msgspec.structs.replace(request, cache_salt="b"), generation_request("r1", num_prompt_tokens=5)]
    assert not any(quarantine.has("tiny", other) for other in others)
    assert not quarantine.has("other-model", request)


def test_the_table_is_bounded_and_forgets_the_oldest():
    quarantine = Quarantine(FakeClock(), max_entries=3)
    requests = [generation_request("r", num_prompt_tokens=length) for length in range(1, 6)]
    for request in requests:
        quarantine.add("tiny", request)
    assert [quarantine.has("tiny", request) for request in requests] == [False, False, True, True, True]
