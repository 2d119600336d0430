"""The Serve config of a cluster is the one of one machine, with only what many machines need added."""

import boto3
import pytest
import yaml
from moto import mock_aws

from cluster.node.errors import BootFailed, NotYet
from cluster.node.serve_config import check_serve_config, fetch_serve_config, for_cluster
from tests.support.node_machines import RecordedCommands, failed

REGION = "eu-west-1"
YAML = "http_options: {port: 8000}\napplications: []\n"


@pytest.fixture
def region(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        yield REGION


def test_config_comes_from_a_parameter_that_is_encrypted(region: str):
    ssm = boto3.client("ssm", region_name=region)
    ssm.put_parameter(Name="/smoke/serve", Value=YAML, Type="SecureString")
    assert fetch_serve_config("ssm:/smoke/serve", region) == YAML


def test_config_comes_from_a_bucket(region: str):
    s3 = boto3.client("s3", region_name=region)
    s3.create_bucket(Bucket="smoke-config", CreateBucketConfiguration={"LocationConstraint": region})
    s3.put_object(Bucket="smoke-config", Key="serve/one.yaml", Body=YAML.encode())
    assert fetch_serve_config("s3://smoke-config/serve/one.yaml", region) == YAML


@pytest.mark.parametrize("location", ["ssm:/smoke/none", "s3://no-such-bucket/serve.yaml"])
def test_config_that_is_not_there_is_named(region: str, location: str):
    with pytest.raises(NotYet, match=f"Serve config {location} does not exist"):
        fetch_serve_config(location, region)


def test_what_the_yaml_leaves_open_is_set_for_many_machines():
    config = for_cluster(YAML)
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert config["proxy_location"] == "EveryNode"
    assert for_cluster("applications: []\n")["http_options"] == {"host": "0.0.0.0"}


def test_what_the_yaml_says_is_kept():
    config = for_cluster("proxy_location: HeadOnly\nhttp_options: {host: 10.64.0.10}\napplications: []\n")
    assert config["http_options"]["host"] == "10.64.0.10"
    assert config["proxy_location"] == "HeadOnly"


def test_loopback_is_kept_with_a_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("WARNING", "cluster.node.serve_config"):
        assert for_cluster("http_options: {host: 127.0.0.1}\napplications: []\n")["http_options"]["host"] == "127.0.0.1"
    assert "no load balancer can reach this cluster" in caplog.text


@pytest.mark.parametrize("text", ["applications: [", "- a\n- b\n", "", "http_options: 8000\n"])
def test_text_that_is_no_serve_config_is_refused(text: str):
    with pytest.raises(BootFailed, match="Serve config"):
        for_cluster(text)


def test_sound_config_is_checked_in_the_form_that_is_deployed():
    seen: list[str] = []

    class Reader(RecordedCommands):
        def run(self, *command: str, timeout_s: float = 60.0) -> str:
            with open(command[-1], encoding="utf-8") as file:
                seen.append(file.read())
            return super().run(*command, timeout_s=timeout_s)

    check_serve_config(Reader({"-m deployments.check": ""}), for_cluster(YAML))
    assert yaml.safe_load(seen[0]) == for_cluster(YAML)


def test_problems_of_an_unsound_config_are_told():
    problem = failed("python", exit_code=2, output="applications.0.args: there are no API keys")
    with pytest.raises(BootFailed, match="not sound.*there are no API keys"):
        check_serve_config(RecordedCommands({"-m deployments.check": problem}), for_cluster(YAML))
