"""Requests leave in order, tenants take turns, and ended requests cost neither order nor memory."""

from engine.waiting_queue import RequestQueue, WaitingQueue
from tests.support.engines import make_request
from tests.support.live_requests import make_live


def live(arrival, tenant="", due_s=None):
    request = make_request(f"r{arrival}", [1], cache_salt=tenant)
    return make_live(request, arrival=arrival, due_s=arrival if due_s is None else due_s)


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


def drain(queue, prompt=10, output=0):
    """Serve everything; return the tenants in the order in which they were served."""
    served = []
    while queue.peek() is not None:
        request = queue.pop()
        queue.charge(request, prompt, output)
        served.append(request.claim.tenant)
    return served


def test_one_tenant_is_served_in_the_order_of_its_requests():
    queue, requests = WaitingQueue(), [live(0, due_s=3.0), live(1, due_s=1.0), live(2, due_s=1.0)]
    for request in requests:
        queue.push(request)
    assert [queue.pop().arrival for _ in requests] == [1, 2, 0]


def test_a_tenant_that_floods_the_queue_delays_only_itself():
    queue = WaitingQueue()
    for arrival in range(20):
        queue.push(live(arrival, "flood"))
    for arrival in (20, 21, 22):
        queue.push(live(arrival, "other"))
    assert drain(queue)[:7] == ["flood", "other", "flood", "other", "flood", "other", "flood"]


def test_turns_are_by_tokens_and_an_output_token_counts_twice():
    queue = WaitingQueue()
    for arrival in range(8):
        queue.push(live(arrival, "ab"[arrival % 2]))
    first = queue.pop()
    queue.charge(first, 10, 10)  # 30
    assert [queue.pop().claim.tenant for _ in range(1)] == ["b"]
    queue.charge(live(9, "b"), 14, 0)
    assert queue.pop().claim.tenant == "b"
    queue.charge(live(9, "b"), 17, 0)
    assert queue.pop().claim.tenant == "a"


def test_what_a_request_did_not_use_is_given_back():
    queue = WaitingQueue()
    for arrival in range(4):
        queue.push(live(arrival, "ab"[arrival % 2]))
    first = queue.pop()
    queue.charge(first, 0, 100)
    queue.charge(queue.pop(), 0, 50)
    queue.charge(first, 0, -80)
    assert queue.pop().claim.tenant == "a"


def test_nobody_saves_up_turns_while_away():
    queue = WaitingQueue()
    for arrival in range(10):
        queue.push(live(arrival, "busy"))
    for _ in range(5):
        queue.charge(queue.pop(), 100, 0)
    for arrival in range(10, 20):
        queue.push(live(arrival, "late"))
    served = drain(queue, prompt=100)
    assert served[:6].count("late") <= 4 and served[:4].count("busy") >= 1


def test_the_turn_passes_on_when_the_next_request_ends():
    queue, first, second = WaitingQueue(), live(0, "a"), live(1, "b")
    queue.push(first)
    queue.push(second)
    assert queue.peek() is first
    first.is_ended = True
    assert queue.peek() is second
    second.is_ended = True
    assert queue.peek() is None
