"""From raw streams to figures. Pure: bytes and times in, numbers out.

TTFT  request sent to first text, s            ITL  gap between two events with text, s (a distribution)
TPOT  (last - first text) / (tokens - 1), s    E2E  request sent to end of the answer, s
goodput  requests per second that met their TTFT and TPOT targets
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.client import RawStream
from benchmarks.report import summary


@dataclass(frozen=True)
class Outcome:
    """One request, parsed. Times are seconds of the client's monotonic clock."""

    sent_at: float
    ended_at: float
    text_at: tuple[float, ...]
    """Arrival of every event that carried text."""
    num_prompt_tokens: int
    num_output_tokens: int
    """By the endpoint's usage; without it, the number of events with text."""
    num_cached_tokens: int
    finish_reason: str | None
    error: str | None
    """Kind of failure: an HTTP status with the endpoint's error code, an error event's code, or the client's."""

    @property
    def ttft_s(self) -> float:
        """Seconds to the first text; only for outcomes that have text."""
        return self.text_at[0] - self.sent_at

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for a single token."""
        if self.num_output_tokens < 2 or len(self.text_at) < 2:
            return None
        return (self.text_at[-1] - self.text_at[0]) / (self.num_output_tokens - 1)


class Targets(NamedTuple):
    """What a request must keep to count as good."""

    ttft_s: float
    tpot_s: float

    def met_by(self, outcome: Outcome) -> bool:
        """Whether the request finished within both targets."""
        return outcome.error is None and outcome.ttft_s <= self.ttft_s and (outcome.tpot_s or 0.0) <= self.tpot_s


def parse(stream: RawStream) -> Outcome:
    """Return what a raw stream means. Never raises: what cannot be understood becomes the outcome's error."""
    texts: list[float] = []
    usage: dict[str, Any] = {}
    finish_reason: str | None = None
    error = stream.failure or (None if stream.status == 200 else _http_error(stream))
    for at, data in events(stream.chunks) if error is None else ():
        if "error" in data:
            error = f"stream: {_code(data)}"
        usage = data.get("usage") or usage
        for choice in data.get("choices") or ():
            if choice.get("text") or (choice.get("delta") or {}).get("content"):
                texts.append(at)
            finish_reason = choice.get("finish_reason") or finish_reason
    if error is None and not texts:
        error = "no text"
    if error is None and finish_reason is None:
        error = "cut: no finish_reason"
    return Outcome(
        sent_at=stream.sent_at,
        ended_at=stream.ended_at,
        text_at=tuple(texts),
        num_prompt_tokens=usage.get("prompt_tokens", 0),
        num_output_tokens=usage.get("completion_tokens", len(texts)),
        num_cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        finish_reason=finish_reason,
        error=error,
    )


def figures(outcomes: Sequence[Outcome], targets: Targets) -> dict[str, Any]:
    """Return the figures of one run; rates count from the first request sent to the last answer."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    duration_s = max((o.ended_at for o in outcomes), default=0.0) - min((o.sent_at for o in outcomes), default=0.0)
    num_output = sum(outcome.num_output_tokens for outcome in good)
    num_prompt = sum(outcome.num_prompt_tokens for outcome in good)
    num_in_time = sum(targets.met_by(outcome) for outcome in good)
    return {
        "num_requests": len(outcomes),
        "num_completed": len(good),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        "duration_s": round(duration_s, 3),
        "requests_per_s": _rate(len(good), duration_s),
        "output_tokens_per_s": _rate(num_output, duration_s),
        "total_tokens_per_s": _rate(num_output + num_prompt, duration_s),
        "goodput_requests_per_s": _rate(num_in_time, duration_s),
        "targets": targets._asdict(),
        "num_prompt_tokens": num_prompt,
        "num_cached_tokens": sum(outcome.num_cached_tokens for outcome in good),
        "num_output_tokens": num_output,
        "ttft_s": summary([outcome.ttft_s for outcome in good]),
        "itl_s": summary(gaps(good)),
        "tpot_s": summary([outcome.tpot_s for outcome in good if outcome.tpot_s is not None]),
        "e2e_s": summary([outcome.ended_at - outcome.sent_at for outcome in good]),
    }


def gaps(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the seconds between neighbouring events with text, of all outcomes."""
    return [b - a for outcome in outcomes for a, b in zip(outcome.text_at, outcome.text_at[1:], strict=False)]


def _rate(count: int, duration_s: float) -> float:
    return round(count / duration_s, 3) if duration_s > 0 else 0.0


def events(chunks: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield each server-sent event's JSON with the arrival of the chunk that completed it."""
    pending = b""
    for at, chunk in chunks:
        *complete, pending = (pending + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in complete:
            data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
            if data and data != b"[DONE]":
                yield at, _json(data)


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {"error": {"code": "not JSON"}}
    return value if isinstance(value, dict) else {"error": {"code": "not an object"}}


def _http_error(stream: RawStream) -> str:
    return f"HTTP {stream.status}: {_code(_json(b''.join(chunk for _, chunk in stream.chunks)))}"


def _code(data: dict[str, Any]) -> str:
    error = data.get("error")
    return str(error.get("code") or error.get("type")) if isinstance(error, dict) else str(error)
