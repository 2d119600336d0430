"""`python -m parallel.rank`: one rank. Reads a RankSpec as JSON from standard input, so that the secret is not visible
to other users as command lines and environments are."""

import os
import signal
import sys

import msgspec

from core.frames import ConnectionLost
from core.logs import configure_logging
from parallel.rank.messages import RankSpec


def main() -> int:
    """Return the exit code of the rank."""
    # Ctrl-C in a terminal reaches every process; the leader decides, and ends its ranks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=RankSpec)
    # What goes well the leader says.
    configure_logging("WARNING", rank=spec.seat)
    # OpenMP reads it once, when torch is loaded.
    os.environ["OMP_NUM_THREADS"] = str(spec.num_threads)
    from parallel.rank.loop import run_rank
    from parallel.rank.pulse import EXIT_LEADER_GONE

    try:
        return run_rank(spec)
    except ConnectionLost as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_LEADER_GONE


if __name__ == "__main__":
    sys.exit(main())
