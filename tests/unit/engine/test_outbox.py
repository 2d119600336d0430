"""Every consumer is told in one call, in order, and the trouble of one is not another's."""

import pytest

from engine.decode_batch import addressees_of
from engine.live_request import RowStay
from engine.outbox import Outbox
from engine.request import StepEvents, TokenEvent
from engine.stop_tokens import StopTokens
from engine.token_log import TokenLog
from tests.support.engines import make_request
from tests.support.live_requests import make_live


def stay(name, sink, row=0):
    live = make_live(make_request(name, [1]), sink, packed_tokens=b"", max_length=10)
    live.stay = RowStay(live, row, [], 0, 8, TokenLog(8, 1))
    return live.stay


@pytest.mark.parametrize("order", ["aab", "aba", "baa", "bbb"])
def test_each_consumer_gets_the_tokens_of_its_own_requests(order):
    told = {"a": [], "b": []}
    sinks = {name: told[name].append for name in told}
    stays = [stay(f"{name}{place}", sinks[name]) for place, name in enumerate(order)]
    outbox = Outbox()
    outbox.put_tokens(addressees_of(stays), [10, 11, 12])
    assert outbox.deliver() == []
    for name, calls in told.items():
        places = [place for place, owner in enumerate(order) if owner == name]
        tokens = [(event.request_id, event.token_ids) for events in calls for event in events]
        assert tokens == [(f"{name}{place}", [10 + place]) for place in places]
        assert len(calls) == bool(places)
    assert outbox.is_empty


def test_an_end_that_comes_after_a_token_is_told_after_it():
    told = []
    one, outbox = stay("one", told.append), Outbox()
    outbox.put_tokens(addressees_of([one]), [7])
    one.live.is_ended = True
    outbox.put_end(one.live, "cancelled")
    outbox.deliver()
    assert [(event.token_ids, event.is_terminal) for event in told[0]] == [([7], False), ([], True)]
    assert (outbox.take_ended(), outbox.take_ended()) == ([one.live], [])


def test_a_consumer_that_raises_is_returned_and_the_others_are_told(caplog):
    def broken(events):
        raise RuntimeError("consumer bug")

    told, outbox = [], Outbox()
    outbox.put_tokens(addressees_of([stay("theirs", broken), stay("ours", told.append)]), [1, 2])
    assert outbox.deliver() == [broken]
    assert len(told) == 1


def test_what_is_discarded_is_never_told():
    told, outbox = [], Outbox()
    outbox.put_tokens(addressees_of([stay("one", told.append)]), [1])
    outbox.discard(told.append)
    outbox.deliver()
    assert told == []


def test_plain_tokens_are_one_event_each_before_the_others():
    step = StepEvents(["a", "b"], [1, 2], [TokenEvent("a", [], finish_reason="stop")])
    assert list(step) == [TokenEvent("a", [1]), TokenEvent("b", [2]), TokenEvent("a", [], finish_reason="stop")]


def test_only_tokens_that_end_a_running_request_are_suspects():
    stop_tokens = StopTokens()
    stop_tokens.add({2, 5})
    stop_tokens.add({5})
    assert stop_tokens.suspects([1, 5, 2, 5]) == [1, 2, 3]
    stop_tokens.remove({2, 5})
    assert stop_tokens.suspects([1, 5, 2, 5]) == [1, 3]
    stop_tokens.remove({5})
    assert stop_tokens.suspects([1, 5, 2, 5]) == []
    assert stop_tokens.suspects([]) == []
