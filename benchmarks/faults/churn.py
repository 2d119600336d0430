"""Callers that are no good: some leave in the middle of an answer, some send what cannot be answered."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from benchmarks.client import Endpoint
from benchmarks.workloads import Planned

_PAUSE_S = 0.2

IsOver = Callable[[], bool]


def bad_bodies(model: str) -> list[bytes]:
    """Return bodies for the completions endpoint, each of which deserves a refusal (4xx), none an error of ours."""
    sound: dict[str, Any] = {"model": model, "prompt": "Hello", "max_tokens": 4}
    changes: list[dict[str, Any]] = [
        {"model": "no-such-model"},
        {"max_tokens": 0},
        {"max_tokens": "4"},
        {"max_tokens": 10**9},
        {"temperature": -1},
        {"temperature": 1e308},
        {"top_p": 0},
        {"n": 10_000},
        {"prompt": [10**9]},
        {"prompt": [-1]},
        {"prompt": "word " * 20_000},
        {"prompt": {"text": "Hello"}},
        {"stop": ["x"] * 1000},
        {"logit_bias": {"1": 1e9}},
        {"max_tokenss": 4},
        {"seed": 2**70},
    ]
    return [
        *(json.dumps(sound | change).encode() for change in changes),
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"max_tokens": ' + b"9" * 5000 + b"}",
    ]


async def send_bad_input(
    session: aiohttp.ClientSession, endpoint: Endpoint, is_over: IsOver, seed: int
) -> Counter[int | str]:
    """Send one bad body after another; return how often each status came, or the kind of a client's failure."""
    bodies, draw = bad_bodies(endpoint.model), random.Random(seed)
    statuses: Counter[int | str] = Counter()
    headers = {"Content-Type": "application/json"}
    while not is_over():
        try:
            async with session.post(endpoint.url, data=draw.choice(bodies), headers=headers) as response:
                await response.read()
                statuses[response.status] += 1
        except (aiohttp.ClientError, OSError) as error:
            statuses[type(error).__name__] += 1
        await asyncio.sleep(draw.uniform(0, _PAUSE_S))
    return statuses


async def leave_early(
    session: aiohttp.ClientSession, endpoint: Endpoint, asked: Sequence[Planned], is_over: IsOver, seed: int
) -> int:
    """Ask and go away, before the first token or after some; return how often."""
    draw, num_left = random.Random(seed), 0
    while not is_over():
        patience_s = draw.choice([draw.uniform(0, 0.2), draw.uniform(0, 5)])
        try:
            async with (
                asyncio.timeout(patience_s),
                session.post(endpoint.url, json=endpoint.body(draw.choice(asked))) as response,
            ):
                async for _ in response.content.iter_any():
                    pass
        except TimeoutError:
            num_left += 1
        except (aiohttp.ClientError, OSError):
            pass  # only those who stay are promised an answer
        await asyncio.sleep(draw.uniform(0, _PAUSE_S))
    return num_left


def is_refusal(status: int | str) -> bool:
    """Whether that is what bad input deserves."""
    return isinstance(status, int) and 400 <= status < 500
