"""What is looked at in a Ray cluster, in one question to it."""

from collections.abc import Iterator

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

        reply = ask_module("deployments.doctor.cluster.ask_ray", (address,), _ASK_S)
        if reply.error:
            return checks.check_no_answer(reply.error)
        return checks.check(msgspec.json.decode(reply.output.splitlines()[-1], type=ClusterFacts))

    return [Probe("ray.gcs", look, _ASK_S + 5)]
