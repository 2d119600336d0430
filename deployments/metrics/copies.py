"""One scrape for all copies of a gateway.

Behind Serve's proxy a scrape reaches one copy, now this, now that. So whichever it reaches asks the others for theirs
and shows all: each copy's own values under the label `gateway`, what groups say once. A copy that does not answer is
missing from that scrape, as a target that is down would be.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from deployments.metrics import group_rows
from deployments.metrics.exposition import Family, numbers, page

logger = logging.getLogger(__name__)


class CopyPage(msgspec.Struct, frozen=True, array_like=True):
    """What one copy has to show."""

    gateway: str
    """Its id."""
    own: list[Family]
    """Values of this copy alone."""
    of_groups: list[Family]
    """What it knows of groups."""
    num_groups: int
    """It is connected to."""


AskCopies = Callable[[], Awaitable[Sequence[CopyPage]]]
"""Returns the page of every copy that answers; does not raise."""


async def ask_nobody() -> Sequence[CopyPage]:
    """Return nothing: there is no other copy."""
    return ()


def joined(own: CopyPage, others: Sequence[CopyPage]) -> bytes:
    """Return one page of all copies; `own` may be among `others`."""
    pages = [own, *(other for other in others if other.gateway != own.gateway)]
    # A copy that has just begun knows few groups.
    best = max(pages, key=lambda one: one.num_groups)
    copies = numbers(group_rows.COPIES, {(): len(pages)}, {})
    return page([*_interleaved(pages), *best.of_groups, copies])


def _interleaved(pages: Sequence[CopyPage]) -> list[Family]:
    """Return the copies' families, those of one name behind each other."""
    by_name: dict[str, list[Family]] = {}
    for one in pages:
        for family in one.own:
            by_name.setdefault(family.name, []).append(family)
    return [family for families in by_name.values() for family in families]
