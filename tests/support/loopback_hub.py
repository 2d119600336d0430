"""A Hugging Face hub on 127.0.0.1, as much of one as huggingface_hub 2 asks of it."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class LoopbackHub:
    """`repos` maps `org/name` to its files; names in `gated` answer 403 unless `token` is sent. Use as a context."""

    repos: dict[str, dict[str, bytes]]
    gated: frozenset[str] = frozenset()
    token: str = "hf_good"
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of every request."""

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def downloaded(self) -> set[str]:
        """Paths inside repositories that were fetched."""
        found = (_FILE.fullmatch(path) for method, path in self.requests if method == "GET")
        return {match["path"] for match in found if match}


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        assert isinstance(self.server, _Server)
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        match = _TREE.fullmatch(path) or _INFO.fullmatch(path) or _FILE.fullmatch(path)
        if match is None or match["repo"] not in hub.repos:
            self._refuse(404, "RepoNotFound")
        elif match["repo"] in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(403, "GatedRepo")
        elif match["revision"] not in (None, "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            self._serve(match, hub.repos[match["repo"]])

    def _serve(self, match: re.Match[str], files: dict[str, bytes]) -> None:
        if match.re is _TREE:
            self._send_json([_tree_entry(path, data) for path, data in sorted(files.items())])
        elif match.re is _INFO:
            self._send_json({"id": match["repo"], "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        elif match["path"] in files:
            self._send_file(files[match["path"]])
        else:
            self._refuse(404, "EntryNotFound")

    def _send_file(self, data: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self._send(206 if start else 200, data[start:], {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _tree_entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
