"""FrameBuffer: red if a frame is lost, joined, cut or unbounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.frames import MAX_FRAME_BYTES, ConnectionLost, FrameBuffer, pack


@given(st.lists(st.binary(max_size=40), max_size=20), st.lists(st.integers(0, 900), max_size=30))
def test_frames_survive_any_cutting_of_the_stream(payloads, cuts):
    stream = b"".join(pack(payload) for payload in payloads)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    buffer = FrameBuffer()
    found = [
        payload for start, end in zip(edges, edges[1:], strict=False) for payload in buffer.feed(stream[start:end])
    ]
    assert found == payloads


def test_an_oversize_length_is_refused_before_its_bytes_come():
    with pytest.raises(ConnectionLost, match="limit"):
        FrameBuffer().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))


def test_an_oversize_length_is_refused_when_it_comes_in_pieces():
    buffer = FrameBuffer()
    header = (MAX_FRAME_BYTES + 1).to_bytes(4, "little")
    assert buffer.feed(header[:3]) == []
    with pytest.raises(ConnectionLost, match="limit"):
        buffer.feed(header[3:])
