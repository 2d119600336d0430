"""Work for a client stops when the client leaves."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Watch = Coroutine[Any, Any, NoReturn]
"""Ends by raising, when there is a reason to stop the work."""


async def run_while_connected(work: Coroutine[Any, Any, None], receive: Receive, *watches: Watch) -> None:
    """Await `work`, whose request body has been read; cancel it as soon as the client leaves, or a watch raises.

    Raises what `work` or a watch raises, or ClientDisconnect. Being cancelled cancels `work` too; nothing runs on
    afterwards.
    """
    task = asyncio.create_task(work)
    watchers = [asyncio.create_task(watch) for watch in (_client_leaves(receive), *watches)]
    try:
        await asyncio.wait((task, *watchers), return_when=asyncio.FIRST_COMPLETED)
        ended = task if task.done() else next(watcher for watcher in watchers if watcher.done())
        ended.result()
    finally:
        for each in (task, *watchers):
            each.cancel()
        await asyncio.gather(task, *watchers, return_exceptions=True)


async def _client_leaves(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect
