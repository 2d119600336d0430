"""Everything that is looked at in a Serve config. Imports happen inside: what one probe cannot load harms no other."""

from collections.abc import Iterator
from pathlib import Path

from deployments.doctor.finding import Finding, ok, problem
from deployments.doctor.probing import Probe

_CHECK_S = 120.0
"""Ray is loaded for its schema."""
_MODEL_S = 120.0
_QUICK_S = 60.0


def config_probes(path: Path) -> list[Probe]:
    """Return the probes of one file."""

    def sound() -> Iterator[Finding]:
        from deployments.check import check_file

        return describe(path, check_file(path))

    def settings() -> Iterator[Finding]:
        from deployments.doctor.config import reading, settings

        config = reading.read(path)
        return settings.check(config, settings.gather_key_files(config))

    def models() -> Iterator[Finding]:
        from deployments.doctor.config import fitting, locating, reading
        from deployments.doctor.config.hardware import Hardware

        hardware = Hardware.here()
        for model in reading.read(path).models:
            source = model.args.model
            location = locating.locate(source.source, source.revision)
            yield from locating.check(model.application, source.source, location)
            if location.path is not None:
                yield from fitting.check(model, location.path, hardware)

    def demand() -> Iterator[Finding]:
        from deployments.doctor.config import demand, reading
        from deployments.doctor.config.hardware import Hardware

        return demand.check(reading.read(path), Hardware.here())

    def ports() -> Iterator[Finding]:
        from deployments.doctor.config import reading
        from deployments.doctor.node import ports

        return ports.check(ports.gather({reading.read(path).port: "HTTP"}), is_needed=True)

    return [
        Probe("config.sound", sound, _CHECK_S),
        Probe("config.keys", settings, _QUICK_S),
        Probe("config.model", models, _MODEL_S),
        Probe("config.room", demand, _QUICK_S),
        Probe("node.ports", ports, _QUICK_S),
    ]


def describe(path: Path, problems: list[str]) -> Iterator[Finding]:
    """Yield what `deployments.check` says of the file."""
    for line in problems:
        yield problem("config.sound", f"{path}: {line}", "correct the file; `serve run` would take it and do otherwise")
    if not problems:
        yield ok("config.sound", f"{path}: every key is known and every value allowed")
