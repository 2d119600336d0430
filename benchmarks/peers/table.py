"""From measured points to rows, ratios and what is printed. Pure."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.peers.bandwidth import Bandwidth
from benchmarks.peers.catalog import Peer
from benchmarks.peers.points import Measured, Point


@dataclass(frozen=True)
class Start:
    """One server that was started in one round."""

    start_s: float
    idle_pss_mib: float
    bandwidth: Bandwidth
    """Of the machine, right before."""


@dataclass(frozen=True)
class Row:
    """One server at one point: medians over the rounds. Times are milliseconds; None where no request finished."""

    peer: str
    weights: str
    workload: str
    concurrency: int
    output_tokens_per_s: float | None
    total_tokens_per_s: float | None
    ttft_ms_p50: float | None
    ttft_ms_p99: float | None
    itl_ms_p50: float | None
    itl_ms_p99: float | None
    tpot_ms_p50: float | None
    bandwidth_share: float | None
    """Bytes of weights / TPOT / the most that all cores read a second in this run: how close decoding is to reading the
    weights once a step and doing nothing else. At more than one stream TPOT holds the prefill of others too."""
    start_s: float
    pss_mib: float
    cores_server: float
    cores_client: float
    cores_others: float
    prompt_tokens: float | None
    """Per answered request, as the server counted them."""
    output_tokens: float | None
    num_planned: int
    num_completed: list[int]
    """Of each round."""
    is_whole: bool
    """False: the time box ended before all requests were sent."""
    is_sound: bool
    """False: requests failed or were cut off, so the rates are too low; such a row is compared with nothing."""
    errors: dict[str, int]


def row(peer: Peer, point: Point, starts: Sequence[Start], rounds: Sequence[Measured], least_step_s: float) -> Row:
    """Return the row of a peer at a point. `least_step_s`: to read its weights once and do nothing else."""
    tpots = [_at(one, "tpot_s", "p50") for one in rounds]
    shares = [None if tpot is None else 1000 * least_step_s / tpot for tpot in tpots]
    errors: Counter[str] = Counter()
    for one in rounds:
        errors.update(one.result["errors"])
    return Row(
        peer=peer.name,
        weights=peer.weights,
        workload=point.workload,
        concurrency=point.concurrency,
        output_tokens_per_s=_median([one.result["output_tokens_per_s"] or None for one in rounds], 1),
        total_tokens_per_s=_median([one.result["total_tokens_per_s"] or None for one in rounds], 1),
        ttft_ms_p50=_median([_at(one, "ttft_s", "p50") for one in rounds], 1),
        ttft_ms_p99=_median([_at(one, "ttft_s", "p99") for one in rounds], 1),
        itl_ms_p50=_median([_at(one, "itl_s", "p50") for one in rounds], 2),
        itl_ms_p99=_median([_at(one, "itl_s", "p99") for one in rounds], 2),
        tpot_ms_p50=_median(tpots, 2),
        bandwidth_share=_median(shares, 3),
        start_s=_median([start.start_s for start in starts], 2) or 0.0,
        pss_mib=_median([one.pss_mib for one in rounds], 0) or 0.0,
        cores_server=_median([one.cores.server for one in rounds], 2) or 0.0,
        cores_client=_median([one.cores.client for one in rounds], 3) or 0.0,
        cores_others=_median([one.cores.others for one in rounds], 3) or 0.0,
        prompt_tokens=_median([_per_answer(one, "num_prompt_tokens") for one in rounds], 1),
        output_tokens=_median([_per_answer(one, "num_output_tokens") for one in rounds], 1),
        num_planned=point.num_requests,
        num_completed=[one.num_completed for one in rounds],
        is_whole=all(one.is_whole for one in rounds),
        is_sound=all(one.is_sound for one in rounds),
        errors=dict(errors),
    )


def comparisons(rows: Sequence[Row], peers: Mapping[str, Peer]) -> list[dict[str, Any]]:
    """Return, for each row of ours, its ratios to the best rival with the same weights and the same kind of front."""
    found: list[dict[str, Any]] = []
    for ours in rows:
        peer = peers[ours.peer]
        if peer.is_ours and ours.is_sound:
            same_point = _at_same_point(ours, rows)
            found += _ratios(ours, [other for other in same_point if _are_rivals(peer, peers[other.peer])])
    return found


def kept(rows: Sequence[Row], peers: Mapping[str, Peer]) -> list[dict[str, Any]]:
    """Return what share of its bare twin's output each server behind Ray Serve keeps, point by point."""
    found: list[dict[str, Any]] = []
    for served in rows:
        twin = peers[served.peer].twin
        for bare in _at_same_point(served, rows):
            if bare.peer == twin and bare.is_sound and served.is_sound:
                share = _speed(served) / _speed(bare)
                place = {"workload": served.workload, "concurrency": served.concurrency}
                found.append({"peer": served.peer, "twin": twin, **place, "share_kept": round(share, 3)})
    return found


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the rows as a results file has them."""
    return [asdict(one) for one in rows]


def printed(rows: Sequence[Row], ratios: Sequence[dict[str, Any]]) -> str:
    """Return the table as aligned lines; `*`: fewer requests than planned fitted in the time, `!`: some failed."""
    head = f"{'peer':14} {'load':4} {'c':>3} {'out tok/s':>10} {'TTFT p50':>9} {'p99':>8} {'ITL p50':>8} {'p99':>8}"
    lines = [
        f"{head} {'TPOT':>7} {'of read':>7} {'PSS MiB':>8} {'start':>6} {'others':>6} {'done':>7} {'ratio':>6}  to"
    ]
    best = {(one["peer"], one["workload"], one["concurrency"]): one for one in ratios}
    for one in rows:
        ratio = best.get((one.peer, one.workload, one.concurrency))
        versus = f"{ratio['output_ratio']:6.2f}  {ratio['best_output']}" if ratio else ""
        done = f"{min(one.num_completed)}/{one.num_planned}{_mark(one)}"
        lines.append(
            f"{one.peer:14} {one.workload:4} {one.concurrency:3} {_cell(one.output_tokens_per_s, 10, 1)}"
            f" {_cell(one.ttft_ms_p50, 9, 0)} {_cell(one.ttft_ms_p99, 8, 0)} {_cell(one.itl_ms_p50, 8, 1)}"
            f" {_cell(one.itl_ms_p99, 8, 1)} {_cell(one.tpot_ms_p50, 7, 1)} {_cell(one.bandwidth_share, 7, 2)}"
            f" {one.pss_mib:8.0f} {one.start_s:6.1f} {one.cores_others:6.2f} {done:>7} {versus}".rstrip()
        )
    return "\n".join(lines)


def _ratios(ours: Row, rivals: Sequence[Row]) -> list[dict[str, Any]]:
    sound = [rival for rival in rivals if rival.is_sound]
    if not sound:
        return []
    fastest, soonest = max(sound, key=_speed), min(sound, key=_ttft)
    return [
        {
            "peer": ours.peer,
            "workload": ours.workload,
            "concurrency": ours.concurrency,
            "best_output": fastest.peer,
            "output_ratio": round(_speed(ours) / _speed(fastest), 3),
            "best_ttft": soonest.peer,
            "ttft_ratio": round(_ttft(ours) / _ttft(soonest), 3),
        }
    ]


def _speed(one: Row) -> float:
    assert one.output_tokens_per_s is not None, "a sound row has answers"
    return one.output_tokens_per_s


def _ttft(one: Row) -> float:
    assert one.ttft_ms_p50 is not None, "a sound row has answers"
    return one.ttft_ms_p50


def _at_same_point(one: Row, rows: Sequence[Row]) -> list[Row]:
    return [other for other in rows if (other.workload, other.concurrency) == (one.workload, one.concurrency)]


def _are_rivals(ours: Peer, other: Peer) -> bool:
    return not other.is_ours and (other.weights, other.front) == (ours.weights, ours.front)


def _mark(one: Row) -> str:
    if not one.is_sound:
        return "!"
    return "" if one.is_whole else "*"


def _at(one: Measured, name: str, point: str) -> float | None:
    """Return a time in milliseconds, None if there is none."""
    value = one.result[name].get(point)
    return None if value is None else 1000 * value


def _per_answer(one: Measured, name: str) -> float | None:
    return one.result[name] / one.num_completed if one.num_completed else None


def _median(values: Sequence[float | None], digits: int) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), digits) if known else None


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
