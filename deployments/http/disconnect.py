"""Work for a client stops when the client leaves."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive


async def run_while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Await `work`, whose request body has been read; cancel it as soon as the client leaves.

    Raises what `work` raises, or ClientDisconnect. Being cancelled cancels `work` too; nothing runs on afterwards.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_client_leaves(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
