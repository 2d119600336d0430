"""Everything that is looked at on a running server. Imports happen inside, as in node/probes.py."""

import time
from collections.abc import Iterator

from deployments.doctor.finding import Finding, problem
from deployments.doctor.probing import Look, Probe
from deployments.doctor.server.asking import Server, Silent, Unreachable

_QUICK_S = 30.0
_ANSWER_S = 120.0
_WAIT_S = 20.0
"""For each answer to begin or go on."""


def server_probes(url: str, api_key: str | None) -> list[Probe]:
    """Return the probes of one server."""
    server = Server(url, api_key, _WAIT_S)

    def alive() -> Iterator[Finding]:
        from deployments.doctor.server import health

        try:
            answer = server.get("/livez", with_key=False)
        except Unreachable as error:
            yield problem(
                "server.alive",
                str(error),
                "is it running, is the address right, does a firewall let you in? A config without http_options.host "
                "listens on every address, one with 127.0.0.1 on its own machine's only",
            )
            return
        yield from health.check_alive(answer, time.time())

    def ready() -> Iterator[Finding]:
        from deployments.doctor.server import health

        yield from health.check_ready(server.get("/readyz", with_key=False))

    def door() -> Iterator[Finding]:
        from deployments.doctor.server import health

        yield from health.check_door(health.look_at_door(server))

    def answers() -> Iterator[Finding]:
        from deployments.doctor.server import answers

        yield from answers.ask_all(server)

    def metrics() -> Iterator[Finding]:
        from deployments.doctor.server import answers

        yield from answers.check_metrics(server.get("/metrics"))

    return [
        Probe("server.alive", alive, _QUICK_S),
        *(
            Probe(name, _if_reachable(name, look), limit_s)
            for name, look, limit_s in (
                ("server.ready", ready, _QUICK_S),
                ("server.key", door, _QUICK_S),
                ("server.completion", answers, _ANSWER_S),
                ("server.metrics", metrics, _QUICK_S),
            )
        ),
    ]


def _if_reachable(name: str, look: Look) -> Look:
    """Return it silenced where nothing answers at all: `server.alive` has said so."""

    def careful() -> Iterator[Finding]:
        try:
            yield from look()
        except Silent as error:
            yield problem(name, str(error), "it hangs; look at the groups (/readyz), their logs, and at --ray")
        except Unreachable:
            return

    return careful
