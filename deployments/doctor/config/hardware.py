"""What this machine offers to ranks, in the words in which ranks tell their leader."""

from dataclasses import dataclass
from typing import Literal

import psutil

from core.cores import usable_cores
from deployments.doctor.node.gpu import Card, ask_driver, read_cards
from parallel.rank.messages import Joined

_FP8_CAPABILITY = (8, 9)
"""Compute capability from which on fp8 works; taken for granted of cards that are only thought of."""


@dataclass(frozen=True)
class Hardware:
    """Cores, memory and GPUs."""

    num_cores: int
    total_bytes: int
    free_bytes: int
    cards: tuple[Card, ...]

    @classmethod
    def here(cls) -> "Hardware":
        """Return this machine's."""
        memory, reply = psutil.virtual_memory(), ask_driver()
        cards = read_cards(reply.output) if reply is not None else ()
        return cls(usable_cores(), memory.total, memory.available, cards)

    @staticmethod
    def of_cards(num_bytes: int, num_ranks: int) -> list[Joined]:
        """Return ranks on empty GPUs of that size each."""
        return [_joined(rank, "cuda", num_bytes, num_bytes, "cuda", "") for rank in range(num_ranks)]

    def runs_on_gpu(self, device: Literal["auto", "cpu", "cuda"]) -> bool:
        """Return whether ranks so configured would run on GPUs."""
        return device == "cuda" or (device == "auto" and bool(self.cards))

    def cpu_ranks(self, num_ranks: int) -> list[Joined]:
        """Return ranks that share this machine's memory. Their kernels are taken to be there; another check looks."""
        return [
            _joined(rank, "cpu", self.total_bytes, self.free_bytes, "cpu", "it runs on cpu")
            for rank in range(num_ranks)
        ]

    def gpu_ranks(self, num_ranks: int) -> list[Joined]:
        """Return one rank on each of the first GPUs."""
        return [
            _joined(
                rank,
                "cuda",
                card.total_bytes,
                card.total_bytes - card.used_bytes,
                "cuda" if card.capability >= (8, 0) else "torch",
                "" if card.capability >= _FP8_CAPABILITY else "the card is too old for fp8",
            )
            for rank, card in zip(range(num_ranks), self.cards, strict=False)
        ]


def _joined(rank: int, device: str, total: int, free: int, tier: str, fp8_obstacle: str) -> Joined:
    return Joined(
        rank=rank,
        generation=0,
        pid=0,
        host="127.0.0.1",
        node="this machine",
        device=device,
        total_memory_bytes=total,
        free_memory_bytes=free,
        tier=tier,
        fp8_obstacle=fp8_obstacle,
    )
