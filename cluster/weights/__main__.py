"""`python -m cluster.weights fetch s3://BUCKET/MODEL`: have a model on this machine, and print where.

Before the first start of a replica group, for instance, or to run `engine.generate` on a model in S3.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO

from cluster.weights.config import CACHE_VARIABLE, WeightsConfig
from cluster.weights.model_files import ModelFiles
from core.errors import EaglerayError, StartupError

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(argv)
    files = ModelFiles(WeightsConfig(cache=options.cache))
    try:
        located = files.locate(options.source, options.revision, ProgressLine(sys.stderr))
    except EaglerayError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_WRONG_INPUT if isinstance(error, StartupError) else EXIT_FAILED
    finally:
        files.close()
    sys.stdout.write(f"{located.path}\n")
    return 0


class ProgressLine:
    """Writes one line for each tenth of the bytes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = -1

    def __call__(self, done: int, total: int, name: str) -> None:
        """Take in how far it is."""
        tenths = 10 * done // max(1, total)
        if tenths > self._shown:
            self._shown = tenths
            self._stream.write(f"{10 * tenths} % of {total} bytes {name}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.weights", description=__doc__)
    fetch = parser.add_subparsers(required=True).add_parser("fetch", help="fetch a model, print its path")
    fetch.add_argument("source", help="as in model.source, e.g. s3://bucket/llama-8b")
    fetch.add_argument("--revision", help="the version to have; another one is refused")
    fetch.add_argument("--cache", help=f"folder; default is ${CACHE_VARIABLE}, or ~/.cache/eagleray/weights")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
