"""`s3://bucket/key`, as `model.source` spells it."""

import re
from typing import NamedTuple

from core.errors import CheckpointError

_SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_WEIGHTS_FILE = ".gguf"


class S3Uri(NamedTuple):
    """A folder of a bucket, or one file in it."""

    bucket: str
    key: str
    """Without a slash at either end."""

    @classmethod
    def parse(cls, text: str) -> "S3Uri":
        """Raise CheckpointError for what is not `s3://bucket/key`."""
        bucket, _, key = text.removeprefix(_SCHEME).partition("/")
        key = key.rstrip("/")
        if not is_remote(text) or not _BUCKET.fullmatch(bucket) or not key or key.startswith("/"):
            raise CheckpointError(f"model.source={text!r} is not s3://BUCKET/FOLDER or s3://BUCKET/FILE.gguf")
        return cls(bucket, key)

    @property
    def is_file(self) -> bool:
        """Whether it names one file, which is the whole model."""
        return self.key.endswith(_WEIGHTS_FILE)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}"


def is_remote(source: str) -> bool:
    """Whether a model source names an object store."""
    return source.startswith(_SCHEME)
