"""Red when a key gets more than its limits, less than it paid for, or headers that say otherwise."""

import pytest

from deployments.http.api_keys import ApiKey
from deployments.http.errors import OverTokenLimit, RateLimited
from deployments.http.quota import Quota
from tests.support.fake_clock import FakeClock


def quota_of(clock: FakeClock, **limits: int) -> Quota:
    return Quota(ApiKey(name="acme", sha256="0" * 64, **limits), clock)


def request(quota: Quota) -> None:
    with quota.request():
        pass


def headers(quota: Quota) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in quota.headers()}


def test_a_minutes_worth_of_requests_may_come_at_once_and_then_they_trickle():
    clock = FakeClock()
    quota = quota_of(clock, requests_per_minute=30)
    for _ in range(30):
        request(quota)
    with pytest.raises(RateLimited, match="30 requests a minute: 1 wanted, 0 left; try again in 2s") as refusal:
        request(quota)
    assert refusal.value.retry_after_s == pytest.approx(2)
    clock.advance(2.01)
    request(quota)
    with pytest.raises(RateLimited):
        request(quota)


def test_a_pause_saves_up_one_minutes_worth_and_no_more():
    clock = FakeClock()
    quota = quota_of(clock, requests_per_minute=2)
    clock.advance(3600)
    request(quota)
    request(quota)
    with pytest.raises(RateLimited):
        request(quota)


def test_only_so_many_requests_are_open_at_once_and_a_refused_one_counts_nowhere():
    quota = quota_of(FakeClock(), max_concurrent=2, requests_per_minute=10)
    with quota.request(), quota.request():
        with pytest.raises(RateLimited, match="2 requests open"):
            request(quota)
        assert headers(quota)["x-ratelimit-remaining-requests"] == "8"
    request(quota)


def test_a_request_that_fails_is_no_longer_open():
    quota = quota_of(FakeClock(), max_concurrent=1)
    with pytest.raises(ZeroDivisionError), quota.request():
        raise ZeroDivisionError
    request(quota)


def test_reserved_tokens_that_were_not_used_come_back():
    quota = quota_of(FakeClock(), tokens_per_minute=1000)
    reservation = quota.reserve(900)
    with pytest.raises(RateLimited, match="200 wanted, 100 left"):
        quota.reserve(200)
    reservation.settle(50)
    assert headers(quota)["x-ratelimit-remaining-tokens"] == "950"
    quota.reserve(950)


def test_tokens_given_back_late_never_make_more_than_a_minutes_worth():
    clock = FakeClock()
    quota = quota_of(clock, tokens_per_minute=1000)
    reservation = quota.reserve(900)
    clock.advance(60)
    reservation.settle(0)
    assert headers(quota)["x-ratelimit-remaining-tokens"] == "1000"


def test_more_tokens_than_a_minute_has_are_refused_for_good():
    quota = quota_of(FakeClock(), tokens_per_minute=1000)
    with pytest.raises(OverTokenLimit, match="smaller max_tokens") as refusal:
        quota.reserve(1001)
    assert refusal.value.retry_after_s is None


def test_headers_say_what_is_left_and_when_all_of_it_is_back():
    quota = quota_of(FakeClock(), requests_per_minute=60, tokens_per_minute=6000)
    request(quota)
    quota.reserve(600)
    assert headers(quota) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5400",
        "x-ratelimit-reset-tokens": "6s",
    }
    quota.reserve(5400)
    assert headers(quota)["x-ratelimit-reset-tokens"] == "1m0s"


def test_an_unlimited_key_has_no_such_headers():
    quota = quota_of(FakeClock())
    for _ in range(1000):
        request(quota)
    quota.reserve(10**9).settle(10**9)
    assert quota.headers() == []
