"""Running a coroutine to its end on each kind of event loop, with nothing left over."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on either loop (Ray Serve uses uvloop); no task and no unheard error may be left."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    async def checked(main: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(20):
            await main
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def run(main: Coroutine[Any, Any, None]) -> None:
        problems: list[str] = []
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: problems.append(repr(context)))
            runner.run(checked(main))
        assert problems == []

    return run
