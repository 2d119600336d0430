"""What is refused by a request's head alone, before a key is looked at or a byte of the body is read.

The HTTP server has parsed the head by then, within bounds of its own; these are ours, and the same under every server.
"""

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.gateway.config import HttpLimits
from deployments.http.errors import BadHost, HeadersTooLarge

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII)


class HeadGuard:
    """Lets a request through to `app` if its head is small and names this server.

    A website can give its own name our address and have a visitor's browser ask us (DNS rebinding). The name is then
    what gives it away, so where no key protects the models only names from `hosts`, localhost and addresses are
    answered. `hosts` None: any name.
    """

    def __init__(self, app: ASGIApp, limits: HttpLimits, hosts: Collection[str] | None) -> None:
        self._app = app
        self._limits = limits
        self._hosts = None if hosts is None else {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises HeadersTooLarge, BadHost."""
        if scope["type"] == "http":
            self._check_size(scope)
            host = Headers(scope=scope).get("host")
            if host is not None:
                self._check_host(host)
        await self._app(scope, receive, send)

    def _check_size(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(headers) > self._limits.max_headers:
            raise HeadersTooLarge(f"the request has {len(headers)} headers; send at most {self._limits.max_headers}")
        num_bytes = len(scope["path"]) + len(scope.get("query_string", b""))
        num_bytes += sum(len(name) + len(value) for name, value in headers)
        if num_bytes > self._limits.max_header_bytes:
            raise HeadersTooLarge(
                f"path and headers have {num_bytes} bytes; send at most {self._limits.max_header_bytes}"
            )

    def _check_host(self, host: str) -> None:
        match = _HOST.fullmatch(host)
        if match is None:
            raise BadHost("the Host header is not a host name with an optional port")
        name = match[1].strip("[]").lower()
        if self._hosts is not None and name not in self._hosts and not _is_address(name):
            raise BadHost(
                "the Host header does not name this server; use its address, or have its name added to allowed_hosts"
            )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
