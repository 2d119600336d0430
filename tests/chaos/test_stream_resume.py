"""Streams outlive their groups: red if a kill or an update costs a client a token, or changes one.

Two groups of the real model in bfloat16, whose kernels give a request the same tokens in any batch and after a resume.
"""

import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.raw_streams import RawStream
from tests.support.serve_instance import RANK_TITLE, REPLICA_TITLE, model_args, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

MODEL = "smollm2-unbroken"
NUM_TOKENS = 250
DRAIN_S = 0.5
SUBJECTS = ("a lighthouse", "a clockmaker", "the sea")
SAMPLINGS = ({"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.95, "seed": 7})
STORIES = [(subject, sampling) for subject in SUBJECTS for sampling in SAMPLINGS]

logger = logging.getLogger(__name__)


class Fleet:
    """Two groups under test, and what they answer when nothing happens to them."""

    def __init__(self, served):
        self.served = served
        self.args = model_args(
            "quickstart.yaml",
            name=MODEL,
            parallel={"threads_per_rank": 1},
            restart={"stable_after_s": 0},
            drain_timeout_s=DRAIN_S,
        )
        self._others = set(served.processes(RANK_TITLE))
        served.deploy(MODEL, self.args, num_replicas=2)
        self.undisturbed = texts(self.begin_all())

    def ranks(self):
        return sorted(set(self.served.processes(RANK_TITLE)) - self._others)

    def leaders(self):
        return set(self.served.processes(f"{REPLICA_TITLE}{MODEL}:"))

    def begin(self, story):
        """Return the stream of a story."""
        subject, sampling = story
        messages = [{"role": "user", "content": f"Tell me a long story of {subject}."}]
        return RawStream(self.served.url, MODEL, NUM_TOKENS, messages=messages, **sampling)

    def begin_all(self):
        """Return a stream for each story, once every one has its first tokens."""
        streams = [self.begin(story) for story in STORIES]
        for stream in streams:
            assert stream.has_begun.wait(60)
        return streams

    def num_resumed(self):
        """Return how many streams went on in another group so far."""
        head = f'eagleray_stream_resumes_total{{model="{MODEL}",'
        lines = self.served.get("/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(head))


def texts(streams):
    """Return what the streams said; fails the test if one broke."""
    ends = [stream.wait(90) for stream in streams]
    assert [end.transport_error for end in ends] == [None] * len(ends), "a stream was cut"
    assert [end.error_code for end in ends] == [None] * len(ends)
    assert all(end.is_done for end in ends)
    return [end.text for end in ends]


@pytest.fixture(scope="module")
def fleet(served):
    yield Fleet(served)
    served.delete(MODEL)


def test_a_killed_rank_costs_no_stream_a_token(fleet):
    num_resumed = fleet.num_resumed()
    streams = fleet.begin_all()
    os.kill(fleet.ranks()[0], signal.SIGKILL)
    assert [stream.ended for stream in streams] == [None] * len(streams), "too late to disturb anybody"
    assert texts(streams) == fleet.undisturbed
    assert fleet.num_resumed() > num_resumed
    wait_until(lambda: len(fleet.ranks()) == 2, 60, "the dead rank is replaced")


def test_a_rolling_update_cuts_no_stream_that_is_longer_than_the_drain_time(fleet):
    num_resumed, old_leaders, is_over = fleet.num_resumed(), fleet.leaders(), threading.Event()

    def read_again_and_again(story):
        """Return every text of the story until the update is over."""
        found = []
        while not is_over.is_set():
            found += texts([fleet.begin(story)])
        return found

    with ThreadPoolExecutor(len(STORIES)) as threads:
        readers = [threads.submit(read_again_and_again, story) for story in STORIES]
        try:
            fleet.served.deploy(MODEL, fleet.args, num_replicas=2)
            wait_until(lambda: not fleet.leaders() & old_leaders, 60, "the old groups are gone")
        finally:
            is_over.set()
        found = [reader.result(timeout=90) for reader in readers]
    assert [set(found_texts) for found_texts in found] == [{text} for text in fleet.undisturbed]
    num_handed_over = fleet.num_resumed() - num_resumed
    logger.info("%d stories, %d of them handed over", sum(map(len, found)), num_handed_over)
    assert num_handed_over > 0
