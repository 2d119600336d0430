"""What is due when, against counting token by token."""

import pytest

from engine.agenda import Agenda
from engine.live_request import RowStay
from engine.token_log import TokenLog
from parallel.plan import pack_integers
from tests.support.engines import make_request
from tests.support.live_requests import make_live

SIZE = 4


def decoding_stay(num_tokens, max_length, first_tick):
    """A stay whose prefill of `num_tokens` is scheduled, and which decodes from `first_tick` on."""
    packed_tokens = pack_integers([1] * num_tokens)
    live = make_live(make_request("r", [1]), packed_tokens=packed_tokens, max_length=max_length)
    blocks = list(range(-(-num_tokens // SIZE)))
    stay = live.stay = RowStay(live, 0, blocks, 0, SIZE, TokenLog(SIZE, 1))
    stay.position_of_tick_0 = num_tokens - first_tick
    return stay


@pytest.mark.parametrize("num_tokens", range(1, 10))
@pytest.mark.parametrize("num_output", [2, 3, 4, 5, 8, 13])
def test_blocks_grow_fill_and_requests_end_at_the_steps_counting_would_give(num_tokens, num_output):
    agenda, first_tick = Agenda(SIZE), 7
    stay = decoding_stay(num_tokens, num_tokens + num_output, first_tick)
    agenda.note(stay)
    position, known = num_tokens, num_tokens + 1
    tick = first_tick
    while known < num_tokens + num_output:
        growing = agenda.growing(tick)
        assert growing == ([stay] if position == len(stay.blocks) * SIZE else [])
        if growing:
            stay.blocks.append(99)
            agenda.note(stay)
        known += 1
        is_ending = agenda.ending(tick) == [stay]
        assert is_ending == (known == num_tokens + num_output)
        # The end takes care of its blocks itself.
        if not is_ending and known < num_tokens + num_output - 1:
            assert agenda.filling(tick) == ([stay] if (position + 1) % SIZE == 0 else [])
        position, tick = position + 1, tick + 1


def test_what_was_noted_for_a_stay_that_is_over_is_not_due():
    agenda, stay = Agenda(SIZE), decoding_stay(4, 100, first_tick=1)
    agenda.note(stay)
    stay.live.stay = None
    assert agenda.growing(1) == agenda.filling(0) == agenda.ending(1) == []
