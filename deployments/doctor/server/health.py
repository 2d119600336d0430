"""Whether a server is there, which models and groups it has, and whether the caller's key opens it."""

import ipaddress
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import msgspec

from deployments.doctor.finding import Finding, note, ok, problem, warning
from deployments.doctor.server.asking import Answer, Server
from deployments.gateway.readiness import GroupReport, ModelReport, ReadinessReport

MAX_SKEW_S = 5.0


class DoorFacts(NamedTuple):
    """How the server treats callers with and without the key."""

    is_loopback: bool
    is_secure: bool
    has_key: bool
    """There is one to try."""
    without_key: int
    """Status of /v1/models without any."""
    with_key: int
    """Status with it; the same question if there is none."""


def check_alive(answer: Answer, now_s: float) -> Iterator[Finding]:
    """Yield whether /livez is a gateway's, and whether its clock is ours; `now_s` is when it answered, since 1970."""
    if answer.status in (301, 302, 307, 308):
        yield problem(
            "server.alive",
            f"/livez leads elsewhere: {answer.status} to {answer.headers.get('location', 'nowhere')}",
            "ask the address that it leads to",
        )
        return
    if answer.status != 200 or b'"alive"' not in answer.body:
        yield problem(
            "server.alive",
            f"/livez gives {answer.status}: {answer.text() or 'nothing'}",
            "404 from Ray Serve: no gateway is deployed yet (--ray says more). Else another program has this address",
        )
        return
    via = answer.headers.get("via")
    yield ok("server.alive", f"a gateway answers in {1e3 * answer.total_s:.0f} ms" + (f", via {via}" if via else ""))
    skew_s = _skew_s(answer, now_s)
    if skew_s is not None and abs(skew_s) > MAX_SKEW_S:
        yield warning(
            "server.clock",
            f"the server's clock is {abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} this machine's",
            "run chrony or systemd-timesyncd on both",
        )
    elif skew_s is not None:
        yield ok("server.clock", "the server's clock agrees with this machine's")


def _skew_s(answer: Answer, now_s: float) -> float | None:
    try:
        return now_s - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None


def check_ready(answer: Answer) -> Iterator[Finding]:
    """Yield the state of every model and of its groups, as /readyz tells."""
    try:
        report = msgspec.json.decode(answer.body, type=ReadinessReport)
    except msgspec.DecodeError:
        yield problem("server.ready", f"/readyz gives {answer.status}: {answer.text()}", "this is no eagleray gateway")
        return
    if not report.models:
        yield problem("server.ready", "no model has announced itself", "deploy one; --ray says what Ray makes of it")
    for model in report.models:
        yield _model(model)
        for group in model.groups:
            yield from _group(model.model, group)


def _model(model: ModelReport) -> Finding:
    num_ready = sum(group.state == "ready" for group in model.groups)
    counts = f"{model.model}: {num_ready} of {len(model.groups)} groups ready"
    if model.is_ready:
        return ok("server.ready", counts if model.groups else f"{model.model}: asleep, woken by its next request")
    states = {group.state for group in model.groups}
    if states & {"starting", "restarting"}:
        return warning("server.ready", f"{counts}: {model.reason}", "wait; the groups below say how far they are")
    advice = "see its groups below" if model.groups else "is its application deployed? --ray says why not"
    return problem("server.ready", f"{counts}: {model.reason}", advice)


def _group(model: str, group: GroupReport) -> Iterator[Finding]:
    name = f"{model} group {group.group_id}"
    error = f": {group.error}" if group.error else ""
    progress = ", ".join(f"rank {p.rank} {p.phase} {p.percent} %" for p in group.progress)
    if group.state == "failed":
        yield problem("server.groups", f"{name} failed{error}", "Serve replaces it; if it fails again, correct that")
    elif group.state == "restarting":
        yield warning(
            "server.groups",
            f"{name} restarts, generation {group.generation}{error}" + (f" ({progress})" if progress else ""),
            "its streams went on elsewhere; if it happens again, look at the leader's log and at the incidents folder",
        )
    elif group.state in ("starting", "draining"):
        yield note("server.groups", f"{name} is {group.state}" + (f" ({progress})" if progress else ""))
    elif group.generation > 0:
        yield note("server.groups", f"{name}: {group.world_size} ranks, restarted {group.generation} times in place")
    else:
        yield ok("server.groups", f"{name}: {group.world_size} ranks")


def look_at_door(server: Server) -> DoorFacts:
    """Return how /v1/models answers with and without the key. Raises Unreachable."""
    without = server.get("/v1/models", with_key=False).status
    with_key = server.get("/v1/models").status if server.has_key else without
    return DoorFacts(is_loopback(server.host), server.is_secure, server.has_key, without, with_key)


def check_door(facts: DoorFacts) -> Iterator[Finding]:
    """Yield whether a key is needed, whether this one opens, and whether others can overhear it."""
    is_locked = facts.without_key == 401
    if is_locked and not facts.has_key:
        yield problem(
            "server.key",
            "the server wants an API key, and there is none",
            "set EAGLERAY_API_KEY, or give --api-key-file",
        )
    elif is_locked and facts.with_key == 401:
        yield problem(
            "server.key",
            "the server does not know this API key",
            "check EAGLERAY_API_KEY; a new key: python -m deployments.keys new --name NAME, on the server's side",
        )
    elif facts.with_key == 429:
        yield warning("server.key", "the key is over its limits (429)", "wait a minute, or raise its limits")
    elif facts.with_key != 200:
        yield problem("server.key", f"/v1/models gives {facts.with_key}", "the server's log says why")
    elif is_locked:
        yield ok("server.key", "the key opens, and without it nothing does")
    elif facts.is_loopback:
        yield ok("server.key", "no key is needed on this machine")
    else:
        yield warning(
            "server.key",
            "no key is needed from another machine",
            "make keys (python -m deployments.keys new --name NAME), unless the network keeps strangers out",
        )
    if facts.has_key and not facts.is_secure and not facts.is_loopback:
        yield warning(
            "server.transport",
            "key and prompts travel unencrypted (http)",
            "put a load balancer with TLS in front, and use its https address",
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by any of its inner names."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
