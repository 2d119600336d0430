"""The pool of threads under the CPU kernels: every item once, whoever does it."""

import ctypes
import threading
from collections import Counter

import pytest
import torch

from parallel.cpu.arena import Arena
from parallel.cpu.library import KernelLibrary
from parallel.cpu.matrix import CpuMatmul
from parallel.cpu.threads import ThreadPool
from tests.support.kernel_libraries import kernel_library

Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
MAX_WAIT_S = 30.0


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    library = kernel_library()
    calls = library.calls
    calls.eg_parallel.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, Work, ctypes.c_void_p)
    calls.eg_parallel.restype = None
    calls.eg_num_threads.argtypes = (ctypes.c_void_p,)
    calls.eg_scratch.argtypes = (ctypes.c_size_t,)
    calls.eg_scratch.restype = ctypes.c_void_p
    return library


@pytest.fixture(params=[1, 2, 3, 4])
def pool(library: KernelLibrary, request: pytest.FixtureRequest):
    pool = ThreadPool(library, request.param)
    yield pool
    pool.close()


class Record:
    """Remembers the chunks of a job and who did them."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.work = Work(self._do)

    def _do(self, context: int | None, first: int, last: int) -> None:
        del context
        self.threads.add(threading.get_ident())
        self.chunks.append((first, last))

    def items(self) -> Counter[int]:
        """Return how often each item was done."""
        return Counter(item for first, last in self.chunks for item in range(first, last))


def run(library: KernelLibrary, pool: ThreadPool | None, num_items: int, items_per_chunk: int) -> Record:
    record = Record()
    pointer = None if pool is None else pool.pointer
    library.calls.eg_parallel(pointer, num_items, items_per_chunk, record.work, None)
    return record


class Meeting:
    """Work whose chunks wait until `num_threads` threads are inside at the same time."""

    def __init__(self, num_threads: int) -> None:
        self._barrier = threading.Barrier(num_threads)
        self.threads: set[int] = set()
        self.work = Work(self._do)

    def _do(self, context: int | None, first: int, last: int) -> None:
        del context, first, last
        self.threads.add(threading.get_ident())
        self._barrier.wait(MAX_WAIT_S)


@pytest.mark.parametrize(
    ("num_items", "items_per_chunk"), [(0, 4), (1, 1), (3, 7), (7, 7), (8, 7), (100, 1), (1000, 17)]
)
def test_every_item_is_done_once(library: KernelLibrary, pool: ThreadPool, num_items: int, items_per_chunk: int):
    for _ in range(20):
        record = run(library, pool, num_items, items_per_chunk)
        assert record.items() == Counter(range(num_items))


def test_chunks_are_as_long_as_asked(library: KernelLibrary):
    pool = ThreadPool(library, 2)
    assert sorted(run(library, pool, 23, 10).chunks) == [(0, 10), (10, 20), (20, 23)]
    pool.close()


@pytest.mark.parametrize("num_items", [1, 10])
def test_work_without_helpers_or_of_one_chunk_is_one_call_of_the_caller(library: KernelLibrary, num_items: int):
    pool = ThreadPool(library, 3)
    for record in (run(library, None, num_items, 2), run(library, pool, num_items, 10)):
        assert (record.chunks, record.threads) == ([(0, num_items)], {threading.get_ident()})
    pool.close()


def test_all_threads_take_part(library: KernelLibrary, pool: ThreadPool):
    meeting = Meeting(pool.num_threads)
    library.calls.eg_parallel(pool.pointer, pool.num_threads, 1, meeting.work, None)
    assert len(meeting.threads) == pool.num_threads
    assert threading.get_ident() in meeting.threads


def test_limit_keeps_helpers_out_and_lets_them_in_again(library: KernelLibrary):
    pool = ThreadPool(library, 4)
    for limit in (2, 1, 3, 4):
        pool.limit(limit)
        assert library.calls.eg_num_threads(pool.pointer) == limit
        meeting = Meeting(limit)
        library.calls.eg_parallel(pool.pointer, limit, 1, meeting.work, None)
        assert len(meeting.threads) == limit
        assert len(run(library, pool, 200, 1).threads) <= limit
    pool.close()


def test_limit_beyond_the_pool_is_the_pool(library: KernelLibrary):
    pool = ThreadPool(library, 2)
    for limit, num_threads in ((1, 1), (5, 2), (0, 1)):
        pool.limit(limit)
        assert library.calls.eg_num_threads(pool.pointer) == num_threads
    assert library.calls.eg_num_threads(None) == 1
    pool.close()


def test_work_inside_work_is_done_by_the_thread_that_asks(library: KernelLibrary):
    pool, inner = ThreadPool(library, 3), [Record() for _ in range(6)]

    def do(context: int | None, first: int, last: int) -> None:
        del context
        for item in range(first, last):
            library.calls.eg_parallel(pool.pointer, 50, 5, inner[item].work, None)

    library.calls.eg_parallel(pool.pointer, 6, 1, Work(do), None)
    assert [record.chunks for record in inner] == [[(0, 50)]] * 6
    pool.close()


def test_thousands_of_jobs_on_more_threads_than_cores_lose_nothing(library: KernelLibrary):
    """Late helpers meet the next job in every way they can; a chunk done twice or not at all shows in the sums."""
    pool = ThreadPool(library, 8)
    weight_RI = torch.ones(48 * 9, 2).bfloat16()
    matmul = CpuMatmul(library, pool, Arena(1 << 20), weight_RI, None)
    for step in range(3000):
        y_TR = matmul(torch.tensor([[1.0, float(step % 100)]]))
        assert y_TR.min() == y_TR.max() == 1 + step % 100
    pool.close()


def test_pools_start_and_stop_whatever_their_helpers_are_doing(library: KernelLibrary):
    for round_ in range(40):
        pool = ThreadPool(library, 4)
        if round_ % 2:
            assert run(library, pool, 64, 1).items() == Counter(range(64))
        pool.close()
        pool.close()


def test_scratch_is_the_threads_own_and_aligned(library: KernelLibrary):
    calls, addresses, barrier = library.calls, list[int](), threading.Barrier(2)

    def take() -> None:
        small = calls.eg_scratch(100)
        ctypes.memset(small, 1, 100)
        large = calls.eg_scratch(1 << 20)
        ctypes.memset(large, 1, 1 << 20)
        assert calls.eg_scratch(10) == large
        addresses.append(large)
        barrier.wait(MAX_WAIT_S)

    other = threading.Thread(target=take)
    other.start()
    take()
    other.join()
    assert len(set(addresses)) == 2
    assert all(address % 64 == 0 for address in addresses)
