"""A rank's pulse: a connection of its own on which it shows the leader that it lives, whatever its main thread does.

    rank -> leader   an empty frame every quarter of a second; a frame with text when it was asked where its threads are
    leader -> rank   an empty frame: where are your threads?

The beats come from a thread of the kernel library, which needs no interpreter lock: a rank that holds it for long is
busy, not frozen. Without the library a Python thread beats, and says so. The end of the connection means that the
leader is gone, and ends this process.
"""

import contextlib
import ctypes
import faulthandler
import os
import socket
import tempfile
import threading
from typing import Protocol

import msgspec

from core.frames import ConnectionLost, receive_frame, send_frame
from parallel.cpu.library import KernelLibrary, KernelsUnavailable
from parallel.rank import messages
from parallel.rank.channel import open_connection
from parallel.rank.messages import RankSpec

BEAT_S = 0.25
MAX_STACKS_BYTES = 128 * 1024
EXIT_LEADER_GONE = 3


class Beats(Protocol):
    """Sends the frames of a pulse, from a thread of its own."""

    needs_gil: bool
    """Whether it is late while other Python code holds the interpreter lock."""

    def start(self, sock: socket.socket) -> None:
        """Begin to beat. Raises OSError."""
        ...

    def say(self, text: bytes) -> None:
        """Send a frame with text."""
        ...

    def stop(self) -> None:
        """End; the socket is shut down already."""
        ...


class NativeBeats:
    """Beats of the kernel library's thread."""

    needs_gil = False

    def __init__(self, library: KernelLibrary) -> None:
        self._calls = library.calls
        self._pulse = ctypes.c_void_p()

    def start(self, sock: socket.socket) -> None:
        """Begin to beat. Raises OSError."""
        error = self._calls.eg_pulse_start(sock.fileno(), BEAT_S, ctypes.byref(self._pulse))
        if error:
            raise OSError(error, os.strerror(error))

    def say(self, text: bytes) -> None:
        """Send a frame with text."""
        self._calls.eg_pulse_say(self._pulse, text, len(text))

    def stop(self) -> None:
        """End the thread."""
        self._calls.eg_pulse_stop(self._pulse)


class PythonBeats:
    """Beats of a Python thread, where there is no kernel library."""

    needs_gil = True

    def __init__(self) -> None:
        self._sending = threading.Lock()
        self._stopped = threading.Event()
        self._sock: socket.socket | None = None

    def start(self, sock: socket.socket) -> None:
        """Begin to beat."""
        self._sock = sock
        threading.Thread(target=self._run, name="pulse", daemon=True).start()

    def say(self, text: bytes) -> None:
        """Send a frame; one that cannot be sent is not missed by anybody."""
        assert self._sock is not None, "start comes first"
        with self._sending, contextlib.suppress(ConnectionLost):
            send_frame(self._sock, text)

    def stop(self) -> None:
        """End the thread soon."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.say(b"")
            self._stopped.wait(BEAT_S)


class RankPulse:
    """Beats until stopped, answers where the threads are, and ends the process with its leader."""

    def __init__(self, sock: socket.socket, seat: int, beats: Beats) -> None:
        """Take over an authenticated connection. Raises ConnectionLost, OSError."""
        self._sock = sock
        self._beats = beats
        self._is_stopped = threading.Event()
        send_frame(sock, msgspec.msgpack.encode(messages.Pulse(seat, beats.needs_gil)))
        beats.start(sock)
        self._watching = threading.Thread(target=self._watch, name="leader-watch", daemon=True)
        self._watching.start()

    def stop(self) -> None:
        """Let the leader go without ending the process; the pulse is over."""
        self._is_stopped.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        # It may be about to speak through the beats.
        self._watching.join()
        self._beats.stop()
        self._sock.close()

    def _watch(self) -> None:
        try:
            while True:
                receive_frame(self._sock)
                self._beats.say(stacks())
        except ConnectionLost:
            if not self._is_stopped.is_set():
                # Also in the middle of a collective or a kernel, where the main thread reads nothing.
                os._exit(EXIT_LEADER_GONE)


def open_pulse(spec: RankSpec) -> RankPulse:
    """Return this process's pulse, which beats. Raises ConnectionLost, OSError."""
    return RankPulse(open_connection(spec.leader_host, spec.leader_port, spec.secret), spec.seat, best_beats())


def best_beats() -> Beats:
    """Return beats that need no interpreter lock, if this machine has the kernel library."""
    try:
        return NativeBeats(KernelLibrary.load())
    except KernelsUnavailable:
        return PythonBeats()


def stacks() -> bytes:
    """Return where every thread of this process is: files, lines and functions, no values."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read(MAX_STACKS_BYTES)
