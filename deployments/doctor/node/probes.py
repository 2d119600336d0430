"""Everything that is looked at on this machine. Imports happen inside: what one probe cannot load harms no other."""

import os
from collections.abc import Iterator

from deployments.doctor.finding import Finding
from deployments.doctor.probing import Look, Probe

_QUICK_S = 30.0
_IMPORT_S = 120.0
"""torch takes seconds, on a cold disk many more."""
_BIG_PACKAGES = ("torch", "ray", "transformers")


def node_probes() -> list[Probe]:
    """Return the probes of this machine, in the order in which a person would look."""
    return [
        Probe("node.role", _role, _QUICK_S),
        Probe("node.packages", _versions, _QUICK_S),
        *(Probe("node.imports", _loading(package), _IMPORT_S) for package in _BIG_PACKAGES),
        Probe("node.cores", _machine, _QUICK_S),
        Probe("node.kernels", _kernels, _IMPORT_S),
        Probe("node.disk", _storage, _QUICK_S),
        Probe("node.clock", _clock, _QUICK_S),
        Probe("node.gpu", _gpu, _IMPORT_S),
        Probe("node.efa", _fabric, _QUICK_S),
        Probe("node.ports", _ports, _QUICK_S),
        Probe("node.ray_token", _token, _QUICK_S),
        Probe("node.ray_leftovers", _sessions, _QUICK_S),
    ]


def _role() -> Iterator[Finding]:
    from deployments.doctor.node import role

    return role.check(role.gather())


def _versions() -> Iterator[Finding]:
    from deployments.doctor.node import versions

    return versions.check_versions(versions.gather_versions())


def _loading(package: str) -> Look:
    def look() -> Iterator[Finding]:
        from deployments.doctor.node import versions

        return versions.check_import(versions.gather_import(package, _IMPORT_S - 5))

    return look


def _machine() -> Iterator[Finding]:
    from deployments.doctor.node import machine

    return machine.check_machine(machine.gather_machine())


def _clock() -> Iterator[Finding]:
    from deployments.doctor.node import machine

    return machine.check_clock(machine.gather_clock())


def _kernels() -> Iterator[Finding]:
    from deployments.doctor.node import kernels

    return kernels.check(kernels.gather())


def _storage() -> Iterator[Finding]:
    from deployments.doctor.node import storage

    return storage.check(storage.gather())


def _gpu() -> Iterator[Finding]:
    from deployments.doctor.node import gpu

    return gpu.check(gpu.gather())


def _fabric() -> Iterator[Finding]:
    from deployments.doctor.node import fabric

    return fabric.check(fabric.gather())


def _ports() -> Iterator[Finding]:
    from deployments.doctor.node import ports

    return ports.check(ports.gather(ports.USUAL_PORTS), is_needed=False)


def _token() -> Iterator[Finding]:
    from deployments.doctor.node import ray_here

    return ray_here.check_token(ray_here.gather_token(os.environ))


def _sessions() -> Iterator[Finding]:
    from deployments.doctor.node import ray_here

    return ray_here.check_sessions(ray_here.gather_sessions())
