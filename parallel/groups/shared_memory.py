"""The group of ranks that share one machine's memory: the kernel library's collectives, without a socket."""

import ctypes
import errno
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import torch
from torch import Tensor

from core.errors import RankDied
from parallel.cpu.abi import Status
from parallel.cpu.library import KernelLibrary
from parallel.ops.choice import OpChoice

_SUMMED_IN_FLOAT32 = (torch.bfloat16, torch.float16)


class SharedMemoryGroup:
    """A TPGroup of processes of one machine, for CPU tensors. After RankDied only `close` is of use, then nothing.

    A killed rank is noticed within some 10 ms, one that hangs after the timeout.
    """

    def __init__(self, library: KernelLibrary, segment: int, rank: int, pids: Sequence[int], timeout_s: float) -> None:
        """Map the segment (a descriptor, which stays the caller's) that the ranks with these processes share.

        Raises OSError. Nothing is waited for: end with a barrier whatever the ranks need to get here.
        """
        self._calls = library.calls
        self._level = library.level
        self._rank, self._world_size = rank, len(pids)
        self._timeout_s = timeout_s
        opened = ctypes.c_void_p()
        known_pids = (ctypes.c_int32 * len(pids))(*pids)
        error = self._calls.eg_group_open(segment, rank, len(pids), known_pids, timeout_s, ctypes.byref(opened))
        if error:
            raise OSError(error, os.strerror(error))
        self._handle = opened.value

    @property
    def rank(self) -> int:
        """This process's index."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self._world_size

    @property
    def choice(self) -> OpChoice:
        """Shared memory."""
        return OpChoice("all_reduce", "cpu", f"shared memory, {self._level}")

    @property
    def handle(self) -> int:
        """The `eg_group*`, for kernels that sum by themselves; valid until `close`."""
        assert self._handle is not None, "the group is closed"
        return self._handle

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the elementwise sum over ranks, in `x`; narrow floats are added in float32. Raises RankDied."""
        assert x.is_contiguous(), "collectives need contiguous tensors"
        if x.dtype == torch.float32:
            self.check("all_reduce", self._calls.eg_all_reduce(self.handle, x.data_ptr(), x.numel()))
            return x
        if x.dtype in _SUMMED_IN_FLOAT32:
            return x.copy_(self.all_reduce(x.float()))
        return torch.sum(self.all_gather(x), dim=0, out=x)

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's `x`, [world_size, *x.shape]. Raises RankDied."""
        assert x.is_contiguous(), "collectives need contiguous tensors"
        gathered = x.new_empty((self._world_size, *x.shape))
        status = self._calls.eg_all_gather(self.handle, x.data_ptr(), x.nbytes, gathered.data_ptr())
        self.check("all_gather", status)
        return gathered

    def barrier(self) -> None:
        """Return after every rank arrived. Raises RankDied."""
        self.check("barrier", self._calls.eg_barrier(self.handle))

    def check(self, what: str, status: int) -> None:
        """Raise RankDied if `status`, of a kernel that was given the handle, says that a rank did not take part."""
        if status == Status.OK:
            return
        missing = self._calls.eg_group_missing(self.handle)
        if status == Status.PEER_DIED:
            raise RankDied(f"{what} failed: rank {missing} is gone")
        raise RankDied(f"{what} timed out: rank {missing} did not arrive within {self._timeout_s:g} s")

    def close(self) -> None:
        """Leave the group; idempotent, never blocks. The others' collectives fail from now on."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._calls.eg_group_close(handle)


class SegmentAddress(msgspec.Struct, frozen=True):
    """Where the other processes of the machine find a segment."""

    pid: int
    descriptor: int
    name: str
    """Nobody else's: a pid may mean another process where processes are numbered anew (containers)."""


@contextmanager
def new_segment(library: KernelLibrary, world_size: int) -> Iterator[SegmentAddress]:
    """Yield a segment for a group. It has no name in any file system and is gone with the last process that maps it.

    Raises OSError.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, f"shared memory between ranks needs Linux, this is {sys.platform}")
    name = f"eagleray-group-{secrets.token_hex(8)}"
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, library.calls.eg_group_bytes(world_size))
        # A mapping of a file that somebody cuts short kills whoever reads it.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield SegmentAddress(os.getpid(), descriptor, name)
    finally:
        os.close(descriptor)


@contextmanager
def open_segment(address: SegmentAddress) -> Iterator[int]:
    """Yield a descriptor of a segment that a process of this machine and user holds open. Raises OSError."""
    path = f"/proc/{address.pid}/fd/{address.descriptor}"
    if not os.readlink(path).startswith(f"/memfd:{address.name}"):
        raise FileNotFoundError(f"{path} is another process's")
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
