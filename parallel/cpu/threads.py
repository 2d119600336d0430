"""The threads of a rank, shared by all its kernels."""

import weakref

from parallel.cpu.library import KernelLibrary


class ThreadPool:
    """`num_threads` threads, the calling one among them. One thread at a time may use it."""

    def __init__(self, library: KernelLibrary, num_threads: int) -> None:
        self.num_threads = num_threads
        self._calls = library.calls
        self._limit = num_threads
        self.pointer: int = library.calls.eg_threads_start(num_threads)
        """The eg_threads of every call; good until `close`."""
        self._stop = weakref.finalize(self, library.calls.eg_threads_stop, self.pointer)

    def limit(self, num_threads: int) -> None:
        """Let at most so many take part from the next call on; the others sleep."""
        if num_threads != self._limit:
            self._limit = num_threads
            self._calls.eg_threads_limit(self.pointer, num_threads)

    def close(self) -> None:
        """End the threads; idempotent."""
        self._stop()
