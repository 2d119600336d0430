"""Against moto, which answers as S3 does where our own stand-in only answers what we ask."""

import boto3
import pytest
from moto import mock_aws

from cluster.weights.s3 import S3Store
from cluster.weights.store import Checksum
from core.errors import CheckpointError, ReplicaFailed


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="models")
        yield S3Store("models", 2)


def put(key, data, **options):
    boto3.client("s3").put_object(Bucket="models", Key=key, Body=data, **options)


def test_a_listing_leaves_folder_marks_and_other_folders_out(store):
    put("llama/config.json", b"{}")
    put("llama/", b"")
    put("llama-other/config.json", b"{}")
    assert [stored.key for stored in store.list("llama/")] == ["llama/config.json"]


def test_ranges_are_what_was_asked_for(store):
    put("a.gguf", b"0123456789")
    buffer = bytearray(10)
    with store.read(store.describe("a.gguf"), 3, 7) as stream:
        assert stream.readinto(memoryview(buffer)) == 4
    assert buffer[:4] == b"3456"


def test_the_checksum_is_the_stores_own_or_the_md5_of_a_plain_object(store):
    put("own", b"0123456789", ChecksumAlgorithm="SHA256")
    kind = store.checksum(store.describe("own"))
    assert kind is not None and kind.kind == "sha256" and len(kind.value) == 32
    put("kms", b"0123456789", ServerSideEncryption="aws:kms")
    found = store.checksum(store.describe("kms"))
    assert not isinstance(found, Checksum) or found.kind != "md5", "the ETag of an encrypted object is no MD5"


def test_an_object_that_was_overwritten_is_refused(store):
    put("a.gguf", b"before")
    seen = store.describe("a.gguf")
    put("a.gguf", b"after!")
    with pytest.raises(ReplicaFailed, match="overwritten"), store.read(seen, 0, 6):
        pass


def test_missing_keys_and_buckets_are_named(store):
    with pytest.raises(CheckpointError, match="s3://models/none.gguf: does not exist"):
        store.describe("none.gguf")
    with pytest.raises(CheckpointError, match="s3://no-such-bucket/llama/: does not exist"):
        list(S3Store("no-such-bucket", 1).list("llama/"))
