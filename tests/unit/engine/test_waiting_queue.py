"""Ended requests cost neither order nor memory."""

from engine.live_request import LiveRequest
from engine.prefix_cache import BlockHasher
from engine.waiting_queue import RequestQueue
from parallel.plan import pack_integers
from tests.support.engines import make_request


def live(arrival):
    return LiveRequest(
        make_request(f"r{arrival}", [1]),
        lambda events: None,
        packed_tokens=pack_integers([1]),
        arrival=arrival,
        deadline_at_s=None,
        max_length=10,
        stop_ids=frozenset(),
        hasher=BlockHasher(8, ""),
    )


def test_the_smallest_key_leaves_first_and_equal_keys_in_order_of_arrival():
    queue = RequestQueue()
    for arrival, key in enumerate((2.0, 1.0, 1.0)):
        queue.push(key, live(arrival))
    assert [queue.pop().arrival for _ in range(3)] == [1, 2, 0]


def test_ended_requests_are_skipped():
    queue, first, second = RequestQueue(), live(0), live(1)
    queue.push(1.0, first)
    queue.push(2.0, second)
    first.is_ended = True
    assert queue.peek() is second
    second.is_ended = True
    assert queue.peek() is None


def test_ended_requests_do_not_pile_up():
    queue = RequestQueue()
    for arrival in range(5000):
        request = live(arrival)
        queue.push(float(arrival), request)
        request.is_ended = arrival > 0
    assert len(queue._heap) < 200
