"""The key-value store in which ranks find each other."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch._C._distributed_c10d import Store, TCPStore

from core.errors import RankDied


def open_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """Return the rendezvous store: port 0 opens it on `host` and a free port (`.port` of the result), another connects.

    Blocks up to `timeout_s` while connecting. Raises RankDied if nobody listens there, OSError if `host` is not an
    address of this machine when opening.
    """
    return _serve(host, timeout_s) if port == 0 else _connect(host, port, timeout_s)


def tell_all(store: Store, rank: int, world_size: int, topic: str, said: bytes) -> list[bytes]:
    """Return what every rank says on a topic, in rank order; blocks until all have. Raises RankDied."""
    with rank_died(f"rank {rank} did not hear from all {world_size} ranks"):
        store.set(f"{topic}/{rank}", said.decode())
        return [store.get(f"{topic}/{speaker}") for speaker in range(world_size)]


@contextmanager
def rank_died(what: str) -> Iterator[None]:
    """Convert what torch.distributed raises. Running out of memory is a RuntimeError too, but not a death."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankDied(f"{what}: {error}") from error


def _serve(host: str, timeout_s: float) -> TCPStore:
    # The store would listen on every interface and a port we had to guess; a socket of ours does neither.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=128)
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _connect(host: str, port: int, timeout_s: float) -> TCPStore:
    try:
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
    except RuntimeError as error:
        raise RankDied(f"no rendezvous at {host}:{port} within {timeout_s:g} s: {error}") from None
