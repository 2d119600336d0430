"""What is looked at in a Ray cluster, in one question to it."""

import os
from collections.abc import Iterator, Mapping

from deployments.doctor.finding import Finding
from deployments.doctor.inside import ask_module
from deployments.doctor.probing import Probe

_ASK_S = 60.0


def cluster_probes(address: str) -> list[Probe]:
    """Return the probe of the cluster at `HOST:6379`, or at `auto`, the one this machine is part of."""

    def look() -> Iterator[Finding]:
        import msgspec

        from deployments.doctor.cluster import checks
        from deployments.doctor.cluster.facts import ClusterFacts

        environment = with_token(os.environ)
        reply = ask_module("deployments.doctor.cluster.ask_ray", (address,), _ASK_S, environment)
        if reply.error:
            return checks.check_no_answer(reply.error)
        return checks.check(msgspec.json.decode(reply.output.splitlines()[-1], type=ClusterFacts))

    return [Probe("ray.gcs", look, _ASK_S + 5)]


def with_token(environment: Mapping[str, str]) -> dict[str, str]:
    """Return it so that Ray sends the token if there is one; by itself it does so only if told by RAY_AUTH_MODE.

    A cluster that `ray.init` started here wants one, and its user was never asked to set anything.
    """
    from deployments.doctor.node.ray_here import gather_token

    token = gather_token(environment)
    has_token = token.has_value or bool(token.num_bytes)
    return {"RAY_AUTH_MODE": "token", **environment} if has_token else dict(environment)
