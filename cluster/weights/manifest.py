"""Which files make up a model in an object store, in which version: what is fetched, and the name it is kept under."""

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Literal

import msgspec

from cluster.weights.store import ObjectStore, StoredObject
from cluster.weights.uri import S3Uri
from core.errors import CheckpointError

Wanted = Literal["all", "settings"]
"""`settings`: without the weights, for who needs only a tokenizer. Of a .gguf file both are the whole file."""

_SETTINGS = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_WEIGHTS = ("*.safetensors",)
_UNWANTED = ("consolidated*", "original/*", "onnx/*")
_MAX_OBJECTS = 20_000
"""Under one prefix. A model has at most hundreds of files: with more, the prefix is not a model's."""
_DIGEST_BYTES = 16


class RemoteFile(msgspec.Struct, frozen=True):
    """One file of a model."""

    name: str
    """Path inside the model's folder, `/` between folders."""
    key: str
    num_bytes: int
    etag: str

    @property
    def stored(self) -> StoredObject:
        """The object that holds it."""
        return StoredObject(self.key, self.num_bytes, self.etag)


class Manifest(msgspec.Struct, frozen=True):
    """One version of one model."""

    bucket: str
    files: list[RemoteFile]
    is_single_file: bool

    @property
    def digest(self) -> str:
        """Equal for equal content at an equal place, and for nothing else: keys, ETags and sizes make it."""
        digest = hashlib.blake2b(self.bucket.encode(), digest_size=_DIGEST_BYTES)
        for file in self.files:
            digest.update(f"\n{file.key}\n{file.etag}\n{file.num_bytes}".encode())
        return digest.hexdigest()

    def choose(self, wanted: Wanted) -> list[RemoteFile]:
        """Return the files that are wanted."""
        if wanted == "all" or self.is_single_file:
            return self.files
        return [file for file in self.files if _matches(file.name, _SETTINGS)]


def take_stock(store: ObjectStore, uri: S3Uri) -> Manifest:
    """Return the present version of the model at `uri`. Raises CheckpointError, TransferBroken."""
    if uri.is_file:
        stored = store.describe(uri.key)
        name = PurePosixPath(uri.key).name
        return Manifest(uri.bucket, [RemoteFile(name, stored.key, stored.num_bytes, stored.etag)], is_single_file=True)
    prefix = uri.key + "/"
    listed = _bounded(store.list(prefix), uri)
    files = [
        RemoteFile(name, stored.key, stored.num_bytes, stored.etag)
        for stored in sorted(listed)
        if _is_wanted(name := stored.key.removeprefix(prefix))
    ]
    _check_folder(uri, [stored.key for stored in listed], [file.name for file in files])
    return Manifest(uri.bucket, files, is_single_file=False)


def _bounded(objects: Iterable[StoredObject], uri: S3Uri) -> list[StoredObject]:
    found: list[StoredObject] = []
    for stored in objects:
        found.append(stored)
        if len(found) > _MAX_OBJECTS:
            raise CheckpointError(f"{uri}: over {_MAX_OBJECTS} objects, which is no model; give the model's own folder")
    return found


def _check_folder(uri: S3Uri, keys: Sequence[str], names: Sequence[str]) -> None:
    if not keys:
        raise CheckpointError(f"{uri}: nothing is stored there; check bucket and folder, or upload the model")
    if any(_matches(name, _WEIGHTS) for name in names) and "config.json" in names:
        return
    single = [key for key in keys if key.endswith(".gguf")]
    if single:
        raise CheckpointError(
            f"{uri}: a folder of .gguf files; name the one to serve, such as s3://{uri.bucket}/{single[0]}"
        )
    raise CheckpointError(
        f"{uri}: {len(keys)} objects, and no config.json with *.safetensors beside it; check the folder"
    )


def _is_wanted(name: str) -> bool:
    parts = name.split("/")
    if not all(parts) or ".." in parts or "." in parts or "\\" in name or "\0" in name:
        return False
    return _matches(name, (*_WEIGHTS, *_SETTINGS)) and not _matches(name, _UNWANTED)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
