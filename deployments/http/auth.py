"""Who may call: everything needs a key but the paths of load balancers and supervisors, and files that say nothing."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import Unauthorized
from deployments.http.caller import Caller, note_caller
from deployments.http.errors import Forbidden
from deployments.http.key_ring import KeyRing

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""Load balancers and supervisors have no key."""
_LOOKS = frozenset({"GET", "HEAD"})
"""Lists of models, metrics, the live page's feed: they ask nothing of a model, and no key's limits are about them."""


class ApiKeyGuard:
    """Lets a request through to `app` if it carries a known key whose limits allow it, or if no keys are configured."""

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: Collection[str] = ()) -> None:
        """`open_paths`: served to anybody besides OPEN_PATHS, so what they answer must be no secret."""
        self._app = app
        self._keys = keys
        self._open_paths = OPEN_PATHS.union(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and note its caller in `scope`. Raises Unauthorized, Forbidden, RateLimited.

        The path that is looked at is the one that is routed by, never one rebuilt from headers.
        """
        if scope["type"] != "http" or not self._keys.is_locked or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        caller = await self._caller(Headers(scope=scope))
        note_caller(scope, caller)
        if not caller.may_ask(scope["path"]):
            raise Forbidden(f"API key '{caller.name}' does not open {scope['path'][:200]}; its scope or models say so")
        if scope["method"] in _LOOKS:
            await self._app(scope, receive, send)
            return
        with caller.quota.request():
            await self._app(scope, receive, send)

    async def _caller(self, headers: Headers) -> Caller:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("no API key was sent; send the header `Authorization: Bearer YOUR_KEY`")
        caller = await self._keys.find(key.strip())
        if caller is None:
            raise Unauthorized("the API key is not known to this server; check it")
        return caller
