import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from core.logs import PACKAGES, configure_logging, log_context

logger = logging.getLogger("engine.somewhere")


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    before = {
        name: (
            logging.getLogger(name).handlers,
            logging.getLogger(name).level,
            logging.getLogger(name).propagate,
        )
        for name in PACKAGES
    }
    yield
    for name, (handlers, level, propagate) in before.items():
        configured = logging.getLogger(name)
        configured.handlers, configured.propagate = handlers, propagate
        configured.setLevel(level)


def plain(**fields: object) -> io.StringIO:
    stream = io.StringIO()
    configure_logging("INFO", stream=stream, **fields)
    return stream


def structured(**fields: object) -> io.StringIO:
    stream = io.StringIO()
    configure_logging("INFO", json=True, stream=stream, **fields)
    return stream


def test_plain_line_carries_phrase_and_fields():
    stream = plain()
    logger.info("group ready", extra={"num_blocks": 512})
    line = stream.getvalue()
    assert line.endswith("INFO engine.somewhere: group ready num_blocks=512\n")
    assert line[:4].isdigit() and line.split()[0].endswith("Z")


def test_json_line_is_one_object_with_the_fields():
    stream = structured()
    logger.warning("replica draining", extra={"in_flight": 3})
    entry = json.loads(stream.getvalue())
    assert (entry["level"], entry["logger"], entry["message"]) == (
        "WARNING",
        "engine.somewhere",
        "replica draining",
    )
    assert entry["in_flight"] == 3


def test_private_fields_that_a_library_adds_to_every_record_are_left_out():
    stream = structured()
    logger.info("group ready", extra={"num_blocks": 512, "_private_ns": 1})
    assert json.loads(stream.getvalue()).keys() == {"time", "level", "logger", "message", "num_blocks"}


def test_context_fields_are_on_records_inside_the_block_only():
    stream = structured()
    with log_context(request_id="r-1"):
        with log_context(rank=2):
            logger.info("inner")
        logger.info("outer")
    logger.info("outside")
    inner, outer, outside = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (inner["request_id"], inner["rank"]) == ("r-1", 2)
    assert outer["request_id"] == "r-1" and "rank" not in outer
    assert "request_id" not in outside


def test_tasks_do_not_see_each_others_request_id():
    stream = structured()

    async def handle(request_id: str) -> None:
        with log_context(request_id=request_id):
            await asyncio.sleep(0)
            logger.info("handled", extra={"expected": request_id})

    async def both() -> None:
        await asyncio.gather(handle("a"), handle("b"))

    asyncio.run(both())
    for line in stream.getvalue().splitlines():
        entry = json.loads(line)
        assert entry["request_id"] == entry["expected"]


def test_process_fields_are_on_every_record_and_context_wins():
    stream = structured(rank=0, group_id="g")
    logger.info("one")
    with log_context(rank=1):
        logger.info("two")
    one, two = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (one["rank"], one["group_id"]) == (0, "g")
    assert (two["rank"], two["group_id"]) == (1, "g")


def test_field_of_the_call_wins_over_the_context():
    stream = structured()
    with log_context(rank=0):
        logger.info("rank died", extra={"rank": 3})
    assert json.loads(stream.getvalue())["rank"] == 3


def test_value_with_a_line_end_cannot_forge_a_line():
    stream = plain()
    logger.info("request refused", extra={"model": "x\n2026 INFO engine: forged\x1b[2J"})
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_value_with_a_blank_cannot_forge_a_field():
    stream = plain()
    logger.info("request refused", extra={"model": "x rank=7"})
    assert stream.getvalue().endswith('model="x rank=7"\n')


@pytest.mark.parametrize("configure", [plain, structured])
def test_exception_is_kept(configure: Callable[[], io.StringIO]):
    stream = configure()
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("rank failed")
    assert "ValueError: boom" in stream.getvalue()


def test_level_filters_and_second_call_replaces_the_first():
    first = plain()
    second = io.StringIO()
    configure_logging("warning", stream=second)
    logger.info("quiet")
    logger.warning("loud")
    assert first.getvalue() == ""
    assert "quiet" not in second.getvalue() and second.getvalue().count("loud") == 1


def test_other_libraries_loggers_are_left_alone():
    before = (list(logging.getLogger().handlers), logging.getLogger("ray").handlers)
    plain()
    assert (list(logging.getLogger().handlers), logging.getLogger("ray").handlers) == before


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("LOUD")
