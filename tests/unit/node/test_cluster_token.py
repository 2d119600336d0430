"""The token is readable by one user, never on a disk, never in a message."""

import stat
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from cluster.node.cluster_token import fetch_token, file_system_of, keep_token
from cluster.node.errors import BootFailed, NotYet

TOKEN = "3f2a9c5e7b1d4608a2c4e6f8091b3d5f"
REGION = "eu-west-1"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        yield boto3.client("secretsmanager", region_name=REGION)


def mounts_with(kind: str, folder: Path, path: Path) -> Path:
    listing = path / "mounts"
    listing.write_text(f"/dev/root / ext4 rw 0 0\n{kind} {folder} {kind} rw 0 0\n")
    return listing


def test_token_comes_from_the_secret(secrets):
    arn = secrets.create_secret(Name="token", SecretString=TOKEN + "\n")["ARN"]
    assert fetch_token(secrets, arn) == TOKEN


def test_secret_that_does_not_exist_is_waited_for_by_name(secrets):
    with pytest.raises(NotYet, match="secret no-such-token does not exist"):
        fetch_token(secrets, "no-such-token")


@pytest.mark.parametrize("value", ["short", "two words of a length that would do"])
def test_secret_that_is_no_token_is_refused_without_showing_it(secrets, value: str):
    secrets.create_secret(Name="token", SecretString=value)
    with pytest.raises(BootFailed) as error:
        fetch_token(secrets, "token")
    assert value not in error.value.message


def test_file_is_for_its_owner_alone_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "run" / "token"
    mounts = mounts_with("tmpfs", tmp_path, tmp_path)
    keep_token("old", path, mounts)
    keep_token(TOKEN, path, mounts)
    assert path.read_text() == TOKEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [child.name for child in path.parent.iterdir()] == ["token"]


def test_token_is_not_written_to_a_disk(tmp_path):
    path = tmp_path / "run" / "token"
    with pytest.raises(BootFailed, match="is on ext4, and the cluster's token must not reach a disk; mount a tmpfs"):
        keep_token(TOKEN, path, mounts_with("ext4", tmp_path, tmp_path))
    assert not path.exists()


def test_the_nearest_and_latest_mount_counts():
    listing = "a / ext4 rw 0 0\nb /run tmpfs rw 0 0\nc /run/eagleray xfs rw 0 0\nd /run/eagleray tmpfs rw 0 0\n"
    assert file_system_of(Path("/run/eagleray"), listing) == "tmpfs"
    assert file_system_of(Path("/runner"), listing) == "ext4"
