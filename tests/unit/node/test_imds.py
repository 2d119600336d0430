"""The metadata service is asked by version 2 alone, and its absence is explained."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from cluster.node.errors import NotYet
from cluster.node.imds import Identity, InstanceMetadata


class MetadataService:
    """IMDSv2 on 127.0.0.1; a token can be made invalid."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self.tokens: list[str] = []
        self.valid = ""
        self.is_open = True
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                service.valid = f"token-{len(service.tokens)}"
                service.tokens.append(service.valid)
                self._answer(200, service.valid)

            def do_GET(self) -> None:
                value = service.values.get(self.path.removeprefix("/latest/meta-data/"))
                if not service.is_open or self.headers["X-aws-ec2-metadata-token"] != service.valid:
                    self._answer(401, "")
                else:
                    self._answer(404 if value is None else 200, value or "")

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if not self._thread.is_alive():
            return  # a test has closed it
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[MetadataService]:
    service = MetadataService({"instance-id": "i-0abc", "local-ipv4": "10.64.0.10"})
    yield service
    service.close()


def test_machine_learns_who_it_is_with_one_token(service: MetadataService):
    assert InstanceMetadata(service.endpoint).identify() == Identity("i-0abc", "10.64.0.10")
    assert len(service.tokens) == 1


def test_what_is_not_there_is_none(service: MetadataService):
    assert InstanceMetadata(service.endpoint).get("spot/instance-action") is None


def test_expired_token_is_renewed(service: MetadataService):
    metadata = InstanceMetadata(service.endpoint)
    metadata.get("instance-id")
    service.valid = "another"
    assert metadata.get("instance-id") == "i-0abc"
    assert len(service.tokens) == 2


def test_service_that_refuses_every_token_is_reported(service: MetadataService):
    service.is_open = False
    with pytest.raises(NotYet, match="answers 401 to instance-id with a new token"):
        InstanceMetadata(service.endpoint).get("instance-id")


def test_machine_outside_ec2_is_told_so(service: MetadataService):
    del service.values["instance-id"]
    with pytest.raises(NotYet, match="knows no instance-id; is this an EC2 instance"):
        InstanceMetadata(service.endpoint).identify()
    service.close()
    with pytest.raises(NotYet, match="does not answer .*IMDSv2"):
        InstanceMetadata(service.endpoint).identify()


def test_endpoint_comes_from_the_environment_of_the_sdk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://10.64.0.1:1338/")
    assert InstanceMetadata().endpoint == "http://10.64.0.1:1338"
