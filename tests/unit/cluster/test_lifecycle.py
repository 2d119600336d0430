import itertools
from typing import get_args

import pytest

from cluster.lifecycle import GroupEvent, next_state
from cluster.status import GroupState

STATES: tuple[GroupState, ...] = get_args(GroupState)
EVENTS: tuple[GroupEvent, ...] = get_args(GroupEvent)

TABLE: dict[tuple[GroupState, GroupEvent], GroupState | None] = {
    ("starting", "loaded"): "ready",
    ("starting", "broke"): "restarting",
    ("starting", "gave_up"): "failed",
    ("starting", "drain"): "draining",
    ("ready", "loaded"): None,
    ("ready", "broke"): "restarting",
    ("ready", "gave_up"): "failed",
    ("ready", "drain"): "draining",
    ("restarting", "loaded"): "ready",
    ("restarting", "broke"): "restarting",
    ("restarting", "gave_up"): "failed",
    ("restarting", "drain"): "draining",
    ("draining", "loaded"): "draining",
    ("draining", "broke"): "failed",
    ("draining", "gave_up"): "failed",
    ("draining", "drain"): "draining",
    ("failed", "loaded"): None,
    ("failed", "broke"): None,
    ("failed", "gave_up"): "failed",
    ("failed", "drain"): "failed",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_every_state_answers_every_event_as_the_table_says(state, event):
    expected = TABLE[state, event]
    if expected is None:
        with pytest.raises(ValueError, match=event):
            next_state(state, event)
    else:
        assert next_state(state, event) == expected


def test_nothing_leaves_failed():
    reachable = {TABLE["failed", event] for event in EVENTS} - {None}
    assert reachable == {"failed"}
