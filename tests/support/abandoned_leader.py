"""A leader to be killed: `python -m tests.support.abandoned_leader CHECKPOINT` has a step hang on two ranks.

Prints the pids of the rank that is inside a collective and of the one that is frozen, and then does nothing.
"""

import os
import signal
import sys

from core.progress import Progress
from engine.rank_pools.local_launcher import LocalLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from tests.support.small_plans import load_of, long_step


def ignore(progress: Progress) -> None:
    """Take a report."""


def main() -> None:
    """Run until killed."""
    launcher = LocalLauncher()
    pool = SocketRankPool(launcher, 2, 1, PoolOptions(collective_timeout_s=60.0))
    pool.join(ignore)
    pool.load(load_of(sys.argv[1]), ignore)
    os.kill(launcher.pids[1], signal.SIGSTOP)
    pool.submit(long_step(1))
    sys.stdout.write(" ".join(map(str, launcher.pids)) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
