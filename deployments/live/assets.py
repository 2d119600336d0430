"""The page's own files: read once, served to anybody, for they say nothing about this server.

A browser asks for a page before anybody could have typed a key. Whatever the page shows it then fetches with the key.
"""

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE_PATH = "/"
FOLDER = "/live/"

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_SECURITY_HEADERS = {
    # Nothing from elsewhere, nothing inline, no text that becomes markup or code, no frame around it.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Kept, but asked for again each time: a new version is seen at once, and an old one never mixed with it.
    "cache-control": "no-cache",
}


class Asset(NamedTuple):
    """One file."""

    body: bytes
    media_type: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """Return every file by the path it is served at; blocks."""
    files = [file for file in resources.files("deployments.live").joinpath("static").iterdir() if file.is_file()]
    return {_path(file.name): _asset(file.name, file.read_bytes()) for file in files}


def asset_routes(assets: dict[str, Asset]) -> list[Route]:
    """Return a route for each."""
    return [Route(path, _endpoint(asset), methods=["GET"]) for path, asset in sorted(assets.items())]


def _path(name: str) -> str:
    return PAGE_PATH if name == "index.html" else FOLDER + name


def _asset(name: str, body: bytes) -> Asset:
    digest = hashlib.sha256(body).hexdigest()[:32]
    return Asset(body, _MEDIA_TYPES[name.rpartition(".")[2]], f'"{digest}"')


def _endpoint(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    headers = {**_SECURITY_HEADERS, "etag": asset.etag}

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == asset.etag:
            return Response(status_code=304, headers=headers)
        return Response(asset.body, media_type=asset.media_type, headers=headers)

    return serve
