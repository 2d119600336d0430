"""What a row reads is what it was given, whatever the others were given meanwhile."""

import random

import numpy as np
import pytest

from engine.token_log import TokenLog
from parallel.plan import unpack_integers


def write(log, tokens_of_row):
    log.write(np.array(list(tokens_of_row), np.int64), np.array(list(tokens_of_row.values()), np.int32))


def test_rows_read_what_lists_would_hold_however_often_the_ring_goes_round():
    rng = random.Random(1)
    log, unread, read_tick = TokenLog(7, 4), {row: [] for row in range(4)}, dict.fromkeys(range(4), 0)
    for _ in range(300):
        step = {row: rng.randrange(2**31) for row in range(4)}
        write(log, step)
        for row, token in step.items():
            unread[row].append(token)
            if rng.random() < 0.3 or len(unread[row]) == 7:
                assert unpack_integers(log.read(row, read_tick[row])).tolist() == unread[row]
                unread[row], read_tick[row] = [], log.tick


def test_a_row_that_takes_no_part_any_more_costs_the_others_nothing():
    log = TokenLog(3, 2)
    for token in range(5):
        write(log, {1: token})
    assert unpack_integers(log.read(1, 2)).tolist() == [2, 3, 4]


def test_reading_too_late_is_a_bug_and_not_a_wrong_token():
    log = TokenLog(3, 1)
    for token in range(4):
        write(log, {0: token})
    with pytest.raises(AssertionError, match="overwritten"):
        log.read(0, 0)
