"""S3, or a server that speaks its protocol (AWS_ENDPOINT_URL), as an object store. boto3 is imported by the first call.

Region, credentials and endpoint are found as every AWS program finds them.
"""

import base64
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.weights.store import Checksum, ChecksumKind, StoredObject, Stream, TransferBroken
from core.errors import CheckpointError, EaglerayError, ReplicaFailed

logger = logging.getLogger(__name__)

_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "404"})
_DENIED = frozenset({"AccessDenied", "Forbidden", "403", "AllAccessDisabled"})
_BAD_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "400"})
_CHANGED = frozenset({"PreconditionFailed", "412"})
_CRC_FIELDS: dict[str, ChecksumKind] = {
    "ChecksumCRC64NVME": "crc64nvme",
    "ChecksumCRC32C": "crc32c",
    "ChecksumCRC32": "crc32",
    "ChecksumSHA256": "sha256",
}
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60


class S3Store:
    """One bucket; an `ObjectStore`."""

    def __init__(self, bucket: str, num_streams: int) -> None:
        """Connect to nothing yet. Raises CheckpointError if boto3 is not installed."""
        self._bucket = bucket
        self._client = _client(num_streams)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield every object whose key begins so."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        with self._explaining(prefix, "s3:ListBucket on the bucket"):
            for page in pages:
                for entry in page.get("Contents", []):
                    if not entry["Key"].endswith("/"):
                        yield StoredObject(entry["Key"], entry["Size"], entry["ETag"].strip('"'))

    def describe(self, key: str) -> StoredObject:
        """Return one object."""
        with self._explaining(key, "s3:GetObject"):
            head = self._client.head_object(Bucket=self._bucket, Key=key)
        return StoredObject(key, head["ContentLength"], head["ETag"].strip('"'))

    def checksum(self, stored: StoredObject) -> Checksum | None:
        """Return a checksum of the whole object; without one of S3's own, the ETag of an object that was put whole."""
        with self._explaining(stored.key, "s3:GetObject"):
            head = self._client.head_object(
                Bucket=self._bucket, Key=stored.key, IfMatch=f'"{stored.etag}"', ChecksumMode="ENABLED"
            )
        if head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            for field, kind in _CRC_FIELDS.items():
                if field in head:
                    return Checksum(kind, base64.b64decode(head[field]))
        is_plain = head.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in head
        if is_plain and _MD5_ETAG.fullmatch(stored.etag):
            return Checksum("md5", bytes.fromhex(stored.etag))
        return None

    @contextmanager
    def read(self, stored: StoredObject, start: int, end: int) -> Iterator[Stream]:
        """Open a range of this very content."""
        with self._explaining(stored.key, "s3:GetObject"):
            answer = self._client.get_object(
                Bucket=self._bucket, Key=stored.key, IfMatch=f'"{stored.etag}"', Range=f"bytes={start}-{end - 1}"
            )
        body = answer["Body"]
        with self._explaining(stored.key, "s3:GetObject"):
            try:
                yield body
            except BaseException:
                # What is left of the answer would be read before the connection is used again.
                body.close()
                raise

    @contextmanager
    def _explaining(self, key: str, permission: str) -> Iterator[None]:
        """Turn what boto3 raises into errors of ours."""
        from botocore import exceptions
        from urllib3.exceptions import HTTPError

        what = f"s3://{self._bucket}/{key}"
        try:
            yield
        except exceptions.ClientError as error:
            raise _explain(what, permission, error.response) from None
        except (*_transient(), HTTPError, OSError) as error:
            raise TransferBroken(f"{what}: {type(error).__name__}: {error}") from None
        except exceptions.BotoCoreError as error:
            raise CheckpointError(
                f"{what}: {error}; give this machine a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
                "a region comes from AWS_REGION"
            ) from None


def _explain(what: str, permission: str, response: Any) -> EaglerayError:
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _MISSING:
        return CheckpointError(f"{what}: does not exist ({code}); check bucket and key")
    if code in _DENIED:
        return CheckpointError(f"{what}: access is denied ({code}); the role of this machine needs {permission}")
    if code in _BAD_CREDENTIALS:
        return CheckpointError(f"{what}: the credentials of this machine are refused ({code}); renew them")
    if code in _CHANGED:
        return ReplicaFailed(
            f"{what}: was overwritten while it was fetched; give each version of a model its own folder"
        )
    if status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling", "RequestTimeTooSkewed"):
        return TransferBroken(f"{what}: {code or status}")
    return CheckpointError(f"{what}: {code or status}: {response.get('Error', {}).get('Message', '')}")


def _transient() -> tuple[type[Exception], ...]:
    from botocore import exceptions

    return exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError


def _client(num_streams: int) -> Any:
    try:
        from boto3.session import Session
        from botocore.config import Config
    except ImportError:
        raise CheckpointError("models in S3 need boto3; install it: pip install 'eagleray[aws]'") from None
    # A session of its own: the default one is not to be shared between threads. Checksums are of whole files, ours.
    return Session().client(
        "s3",
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            max_pool_connections=num_streams + 1,
            retries={"mode": "standard", "max_attempts": 4},
            response_checksum_validation="when_required",
        ),
    )
