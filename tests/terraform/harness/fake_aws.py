"""AWS on this machine: moto's server inside this process, on as many sockets as are needed, one state behind them."""

import os
import socket
import threading
import warnings
from typing import Any, Self

REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": REGION}


class FakeAws:
    """A context manager: moto answers on 127.0.0.1 and on sockets it is given. One at a time: its state is global."""

    def __init__(self) -> None:
        # Read when moto's modules are loaded: machines' roles name policies that AWS brings.
        os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

            from tests.terraform.harness.moto_extension import extend_moto
        self.hook_results: dict[str, str] = {}
        """What machines said to their launch hooks, by instance id."""
        extend_moto(self.hook_results)
        self._application = DomainDispatcherApplication(create_backend_app)
        self._servers: list[Any] = []
        own = socket.create_server(("127.0.0.1", 0))
        self.port = own.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._serve(own)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def answer_at(self, listener: socket.socket) -> None:
        """Answer there as well; takes the socket over."""
        self._serve(listener)

    def environment(self, url: str | None = None) -> dict[str, str]:
        """Return what makes every AWS SDK, Terraform's too, speak to this AWS; `url` as seen from elsewhere."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": url or self.url, "AWS_EC2_METADATA_DISABLED": "true"}

    def client(self, service: str) -> Any:
        """Return boto3's client of a service."""
        import boto3

        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def _serve(self, listener: socket.socket) -> None:
        from werkzeug.serving import make_server

        host, port = listener.getsockname()
        # The server makes a socket of its own from the descriptor.
        server = make_server(
            host, port, self._application, threaded=True, fd=listener.fileno(), request_handler=_quiet()
        )
        listener.detach()
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, name=f"moto {host}", daemon=True).start()


def _quiet() -> type:
    from werkzeug.serving import WSGIRequestHandler

    class QuietHandler(WSGIRequestHandler):
        """Writes no line for a request."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            return

    return QuietHandler
