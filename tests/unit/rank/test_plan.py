"""What crosses the rank channel packed comes out as it went in."""

import msgspec
import pytest

from core.errors import ErrorInfo
from parallel.plan import (
    RowToken,
    SampledTokens,
    StepPlan,
    StepResult,
    TokenLogprobs,
    pack_integers,
    unpack_integers,
)


@pytest.mark.parametrize("values", [[], [0], [1, 2**31 - 1, 7], range(300)])
def test_integers_are_unpacked_as_they_were_packed(values):
    assert unpack_integers(pack_integers(values)).tolist() == list(values)


def test_a_packed_integer_is_four_little_endian_bytes_on_every_machine():
    # Ranks and leader may differ: a change of this value is a change of protocol.
    assert pack_integers([1, 258]) == b"\x01\0\0\0\x02\x01\0\0"


def test_a_result_says_what_each_row_sampled_with_its_logprobs_or_error():
    tokens = [
        RowToken(3, 11),
        RowToken(0, 12, TokenLogprobs(-0.5, [12, 4], [-0.5, -1.5])),
        RowToken(7, 0, error=ErrorInfo("replica_failed", "logits")),
    ]
    sent = StepResult(5, SampledTokens.of(tokens), 0.25)
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=StepResult)
    assert received.tokens == tokens
    assert received.sampled.remarks == tokens[1:]


def test_a_steady_decode_step_is_a_few_bytes():
    assert len(msgspec.msgpack.encode(StepPlan(123_456, None))) < 16
