"""What the facts of a Ray cluster mean."""

import re
from collections import Counter
from collections.abc import Iterator

from deployments.doctor.cluster.facts import ClusterFacts, PlacementFacts
from deployments.doctor.finding import Finding, note, ok, problem, warning

_ERROR_LINE = re.compile(r"\b(?:\w+\.)+([A-Z]\w*: \S.*?)(?:\n|$)")
_MOST_SHOWN = 300


def check(facts: ClusterFacts) -> Iterator[Finding]:
    """Yield a finding for the nodes, for what waits for room, for each application and for the proxies."""
    yield from _nodes(facts)
    for gap in facts.gaps:
        yield warning("ray.gcs", f"cannot be asked: {gap}", "try again; if it stays so, look at logs/gcs_server.out")
    yield from _waiting(facts)
    yield from _applications(facts)
    unwell = {node: state for node, state in facts.proxies.items() if state != "HEALTHY"}
    for node, state in unwell.items():
        advice = "a draining one ends with its node; else look at proxy logs under logs/serve on that node"
        yield warning("ray.proxies", f"the HTTP proxy of node {node[:12]} is {state}", advice)
    if facts.proxies and not unwell:
        yield ok("ray.proxies", f"{len(facts.proxies)} HTTP proxies are healthy")


def check_no_answer(reason: str) -> Iterator[Finding]:
    """Yield why a cluster could not be asked."""
    if "ersion mismatch" in reason:
        advice = "run the doctor with the cluster's own Ray and Python; all nodes need the same"
    elif "oken" in reason or "UNAUTHENTICATED" in reason:
        advice = "give this process the cluster's token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    else:
        advice = (
            "is Ray running there, and its GCS port (6379) open to this machine? Ray lets in only programs on a node "
            "of the cluster: run the doctor there"
        )
    yield problem("ray.gcs", f"the cluster cannot be asked: {reason}", advice)


def _nodes(facts: ClusterFacts) -> Iterator[Finding]:
    alive = [node for node in facts.nodes if node.is_alive]
    rooms = (f"{facts.free.get(name, 0):g} of {facts.total.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    yield ok("ray.gcs", f"Ray {facts.ray_version}, {len(alive)} nodes, free: {' and '.join(rooms)}")
    for node in alive:
        if node.is_draining:
            yield note("ray.nodes", f"node {node.address} is draining: it takes nothing new and ends")
    dead = Counter(node.why_dead or "no reason is known" for node in facts.nodes if not node.is_alive)
    for why, number in dead.items():
        # A terminated node is how a cluster shrinks; only the reason tells.
        yield note("ray.nodes", f"{number} nodes are gone: {why[:_MOST_SHOWN]}")


def _waiting(facts: ClusterFacts) -> Iterator[Finding]:
    for group in facts.waiting:
        wanted = _wanted(group)
        yield warning(
            "ray.placement",
            f"{wanted} wait for room (placement group {group.group_id[:12]}, {group.state}); free: {_free(facts)}",
            "add nodes, lower num_replicas or tensor_parallel_size, or relax `placement`; with STRICT_PACK all must be "
            "on one node. An autoscaler may be at it already",
        )


def _wanted(group: PlacementFacts) -> str:
    bundles = [", ".join(f"{name} {amount:g}" for name, amount in sorted(bundle.items())) for bundle in group.bundles]
    return " and ".join(f"{number} x ({what})" for what, number in Counter(bundles).items())


def _free(facts: ClusterFacts) -> str:
    return ", ".join(f"{name} {facts.free.get(name, 0):g}" for name in ("CPU", "GPU") if name in facts.total)


def _applications(facts: ClusterFacts) -> Iterator[Finding]:
    if not facts.applications and not any(gap.startswith("Serve:") for gap in facts.gaps):
        yield problem("ray.applications", "Serve has no application", "serve run CONFIG, or serve deploy CONFIG")
    for application in facts.applications:
        said = f"{application.name} is {application.status}"
        if application.status == "RUNNING":
            yield ok("ray.applications", said)
        elif application.status in ("DEPLOYING", "NOT_STARTED", "DELETING"):
            yield note("ray.applications", f"{said}{_because(application.message)}")
        else:
            advice = "the error names what to correct; then deploy the config again"
            yield problem("ray.applications", f"{said}{_because(application.message)}", advice)


def _because(message: str) -> str:
    """Return the error itself out of Serve's message, which wraps a traceback in advice; else its beginning."""
    errors = _ERROR_LINE.findall(message)
    told = errors[-1] if errors else " ".join(message.split())
    return f": {told[:_MOST_SHOWN]}" if told else ""
