"""The instance metadata service, version 2: the address that asks decides who it is told to be."""

import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_TOKEN = "token-of-this-session"
_LIFE_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"


class MetadataService:
    """A context manager that answers on a socket; version 1, a GET without a token, is refused."""

    def __init__(self, listener: socket.socket, machines: Mapping[str, Mapping[str, str]]) -> None:
        """`machines`: address to paths under /latest/meta-data/ and their values."""
        self.num_refused = 0
        self._machines = machines
        service = self

        class Handler(BaseHTTPRequestHandler):
            """One request."""

            def do_PUT(self) -> None:
                is_asked_well = self.path == "/latest/api/token" and self.headers.get(_LIFE_HEADER, "").isdigit()
                self._answer(200 if is_asked_well else 400, _TOKEN if is_asked_well else "")

            def do_GET(self) -> None:
                if self.headers.get(_TOKEN_HEADER) != _TOKEN:
                    service.num_refused += 1
                    self._answer(401)
                    return
                value = service.find(self.client_address[0], self.path)
                self._answer(404 if value is None else 200, value or "")

            def _answer(self, status: int, body: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.socket.close()
        self._server.socket = listener

    def find(self, address: str, path: str) -> str | None:
        """Return what the machine with this address is told."""
        return self._machines.get(address, {}).get(path.removeprefix("/latest/meta-data/"))

    def __enter__(self) -> "MetadataService":
        threading.Thread(target=self._server.serve_forever, name="metadata service", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
