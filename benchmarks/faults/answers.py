"""What is asked while things break, and what came back: texts to compare, times around a fault. Pure but for the seeds.

Half of the questions are greedy, half sampled with a seed: an answer that moved to another group must still be the same
text, byte for byte.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.client import RawStream
from benchmarks.metrics import Outcome, events, parse
from benchmarks.workloads import GREEDY, IdPrompts, Planned, Sampling


class Lengths(NamedTuple):
    """Bounds of the lengths of questions, in tokens."""

    least_prompt: int = 16
    most_prompt: int = 256
    least_output: int = 128
    most_output: int = 320


ORDINARY = Lengths()


def questions(count: int, lengths: Lengths = ORDINARY, seed: int = 0) -> list[Planned]:
    """Return `count` requests of mixed lengths, every second one sampled with a seed of its own."""
    draw = random.Random(seed)
    prompts = IdPrompts(seed)
    return [
        Planned(
            prompts.make(draw.randint(lengths.least_prompt, lengths.most_prompt)),
            draw.randint(lengths.least_output, lengths.most_output),
            sampling=Sampling(0.8, seed=1000 + number, top_p=0.95) if number % 2 else GREEDY,
        )
        for number in range(count)
    ]


@dataclass(frozen=True)
class Answer:
    """One request's outcome and its text."""

    question: int
    """Which of the questions it answers."""
    outcome: Outcome
    text: str

    @classmethod
    def of(cls, question: int, stream: RawStream) -> "Answer":
        """Return what a raw stream says."""
        texts = [
            choice.get("text") or "" for _, event in events(stream.chunks) for choice in event.get("choices") or ()
        ]
        return cls(question, parse(stream), "".join(texts))


def answers(streams: Sequence[RawStream], num_questions: int) -> list[Answer]:
    """Return the answers of streams that were sent in the order of the questions, again and again."""
    return [Answer.of(number % num_questions, stream) for number, stream in enumerate(streams)]


class Verdict(NamedTuple):
    """What became of the answers."""

    num_answers: int
    errors: dict[str, int]
    """Client errors by kind; a stream that was cut is one."""
    num_unequal: int
    """Complete answers whose text is not that of the undisturbed run."""
    num_unequal_greedy: int
    """Those of them that were greedy."""


def judged(found: Iterable[Answer], undisturbed: Sequence[Answer], asked: Sequence[Planned]) -> Verdict:
    """Compare every answer with the one the same question got when nothing broke."""
    found = list(found)
    unequal = [
        answer.question
        for answer in found
        if answer.outcome.error is None and answer.text != undisturbed[answer.question].text
    ]
    return Verdict(
        num_answers=len(found),
        errors=dict(Counter(answer.outcome.error for answer in found if answer.outcome.error is not None)),
        num_unequal=len(unequal),
        num_unequal_greedy=sum(asked[question].sampling == GREEDY for question in unequal),
    )


def waits_after(fault_s: float, found: Iterable[Answer]) -> list[float]:
    """Return the seconds from a fault to the next text of every answer that was being streamed, the longest first.

    Times are of the client's clock. Streams that ended without another text are errors, not waits.
    """
    waits: list[float] = []
    for answer in found:
        times = answer.outcome.text_at
        if times and times[0] <= fault_s < times[-1]:
            waits.append(next(at for at in times if at > fault_s) - fault_s)
    return sorted(waits, reverse=True)
