"""The metadata service is asked by version 2 alone, and its absence is explained."""

from collections.abc import Iterator

import pytest

from cluster.node.errors import NotYet
from cluster.node.imds import Identity, InstanceMetadata
from tests.support.loopback_server import LoopbackServer, QuietHandler


class MetadataService:
    """IMDSv2 on 127.0.0.1; a token can be made invalid."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self.tokens: list[str] = []
        self.valid = ""
        self.is_open = True
        service = self

        class Handler(QuietHandler):
            def do_PUT(self) -> None:
                assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                service.valid = f"token-{len(service.tokens)}"
                service.tokens.append(service.valid)
                self.answer(200, service.valid)

            def do_GET(self) -> None:
                value = service.values.get(self.path.removeprefix("/latest/meta-data/"))
                if not service.is_open or self.headers["X-aws-ec2-metadata-token"] != service.valid:
                    self.answer(401)
                else:
                    self.answer(404 if value is None else 200, value or "")

        self._server = LoopbackServer(Handler)
        self.endpoint = self._server.url

    def close(self) -> None:
        self._server.close()


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
