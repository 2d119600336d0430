"""Who may call: API keys, of which only hashes are known here."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import Unauthorized

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""Load balancers and supervisors have no key."""


class ApiKeyGuard:
    """Lets a request through to `app` if it carries a known key, or if no keys are configured."""

    def __init__(self, app: ASGIApp, keys_sha256: Sequence[str]) -> None:
        self._app = app
        self._digests = [bytes.fromhex(key) for key in keys_sha256]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises Unauthorized for everything but open paths without a known key."""
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS:
            self._check(Headers(scope=scope))
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("no API key was sent; send the header `Authorization: Bearer YOUR_KEY`")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, so the time taken tells nothing about which one was near.
        if sum(hmac.compare_digest(digest, known) for known in self._digests) == 0:
            raise Unauthorized("the API key is not known to this server; check it")
