"""Threads that run beside Ray for as long as the node does."""

import logging
import threading
from collections.abc import Callable

from cluster.node.errors import StopRequested

logger = logging.getLogger(__name__)


class Background:
    """Named threads. One that breaks is begun again at the next look, so an error costs a look and not the node."""

    def __init__(self) -> None:
        self._threads: dict[str, tuple[Callable[[], None], threading.Thread]] = {}
        self._finished: set[str] = set()

    def run(self, name: str, body: Callable[[], None]) -> None:
        """Have `body` run in a thread until it returns or raises StopRequested."""
        thread = threading.Thread(target=self._run_to_end, args=(name, body), name=name, daemon=True)
        self._threads[name] = (body, thread)
        thread.start()

    def revive(self) -> None:
        """Begin again what ended by an error; the thread has shown its traceback."""
        for name, (body, thread) in list(self._threads.items()):
            if not thread.is_alive() and name not in self._finished:
                logger.error("a loop broke and is begun again", extra={"loop": name})
                self.run(name, body)

    def join(self, timeout_s: float) -> None:
        """Wait for each thread up to `timeout_s`; they have been told to stop."""
        for _, thread in self._threads.values():
            thread.join(timeout_s)

    def _run_to_end(self, name: str, body: Callable[[], None]) -> None:
        try:
            body()
        except StopRequested:
            logger.debug("a loop stopped", extra={"loop": name})
        self._finished.add(name)
