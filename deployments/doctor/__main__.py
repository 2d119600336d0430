"""`python -m deployments.doctor [WHAT...]`: says what is wrong with a node, a config or a server, and what to do.

WHAT is nothing (this machine), a Serve config (`configs/x.yaml`), or the address of a server (`http://host:8000`).
Exit code 0: sound; 1: warnings; 2: problems.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deployments.doctor import probing, report
from deployments.doctor.finding import EXIT_PROBLEMS, exit_code
from deployments.doctor.probing import Probe


def main(argv: Sequence[str]) -> int:
    """Look at everything that was asked for, write what was found to stdout, return the exit code."""
    options = _parser().parse_args(argv)
    try:
        key = _api_key(options.api_key_file)
    except OSError as error:
        sys.stderr.write(f"{options.api_key_file}: cannot be read ({error.strerror})\n")
        return EXIT_PROBLEMS
    # With --ray alone, the cluster is what is asked about, not this machine.
    wanted = options.what or ([] if options.ray else [""])
    probes = [probe for what in wanted for probe in _probes(what, key)]
    if options.ray is not None:
        from deployments.doctor.cluster.probes import cluster_probes

        probes += cluster_probes(options.ray)
    findings = probing.run([probe.slower(options.timeout_factor) for probe in probes])
    if options.json:
        sys.stdout.write(report.as_json(findings))
    else:
        sys.stdout.write(report.as_text(findings, is_coloured=sys.stdout.isatty(), is_whole=not options.quiet))
    sys.stdout.flush()
    return exit_code(findings)


def _probes(what: str, api_key: str | None) -> list[Probe]:
    """Return what looks at one argument."""
    if not what:
        from deployments.doctor.node.probes import node_probes

        return node_probes()
    if what.startswith(("http://", "https://")):
        from deployments.doctor.server.probes import server_probes

        return server_probes(what, api_key)
    from deployments.doctor.config.probes import config_probes

    return config_probes(Path(what))


def _api_key(path: Path | None) -> str | None:
    """Return the key to use; never from the command line, which every user of the machine can read.

    Nor from OPENAI_API_KEY: that one may be for OpenAI, and would be sent to whatever address was typed.
    """
    if path is not None:
        return path.read_text(encoding="utf-8").strip()
    return os.environ.get("EAGLERAY_API_KEY")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.doctor",
        allow_abbrev=False,
        description="Say what is wrong with this machine, a config or a server, and what to do. "
        "Exit code 0: sound, 1: warnings, 2: problems.",
    )
    add = parser.add_argument
    add("what", nargs="*", metavar="WHAT", help="a Serve config or http(s)://HOST:PORT; nothing: this machine")
    add("--ray", nargs="?", const="auto", metavar="ADDRESS", help="look at the Ray cluster too (this machine's)")
    add("--json", action="store_true", help="for programs")
    add("--quiet", action="store_true", help="leave out what is as it should be")
    add("--api-key-file", type=Path, metavar="FILE", help="key for the server; else EAGLERAY_API_KEY")
    add("--timeout-factor", type=_factor, default=1.0, metavar="F", help="wait F times as long for everything (1)")
    return parser


def _factor(text: str) -> float:
    factor = float(text)
    # Not less than 1: what a probe asks of other processes has limits that fit within the usual ones.
    if not 1 <= factor <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 100")
    return factor


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
