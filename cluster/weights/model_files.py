"""Where a process finds a model's files: on its machine, fetched there first if they are in an object store."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster.weights.cache import Lease, WeightsCache, allocated_bytes
from cluster.weights.config import WeightsConfig
from cluster.weights.fetch import Fetch, OnBytes, Stopped, Transfer
from cluster.weights.manifest import Manifest, RemoteFile, Wanted, take_stock
from cluster.weights.partial import PartialFile
from cluster.weights.s3 import S3Store
from cluster.weights.store import ObjectStore
from cluster.weights.uri import S3Uri, is_remote
from core.errors import CheckpointError, NotReady
from parallel.checkpoint.source import Located, locate_checkpoint, resolve_tokenizer

logger = logging.getLogger(__name__)

OpenStore = Callable[[str, int], ObjectStore]
"""(bucket, streams at the same time) -> the bucket."""

_POLL_S = 0.3


class ModelFiles:
    """Any thread. What it located stays on the disk until it is closed, or the process has ended."""

    def __init__(self, config: WeightsConfig, open_store: OpenStore = S3Store) -> None:
        self._config = config
        self._open_store = open_store
        self._stop = threading.Event()
        self._lock = threading.Lock()
        # By digest: whoever locates a model again has one already.
        self._leases: dict[str, Lease] = {}
        self._stores: dict[str, ObjectStore] = {}

    def locate(self, source: str, revision: str | None, on_bytes: OnBytes) -> Located:
        """Return the model's folder or .gguf file on this machine; blocks while it is fetched. A `Locate`.

        Of a model in an object store `revision` is the version to have, as an earlier call returned it. Raises
        CheckpointError, ReplicaFailed for what may work later, NotReady once closed.
        """
        if not is_remote(source):
            return locate_checkpoint(source, revision, on_bytes)
        return self._have(S3Uri.parse(source), revision, "all", on_bytes)

    def locate_tokenizer(self, source: str, revision: str | None) -> Path:
        """Return the same for who needs no weights: of folders only the small files come."""
        if not is_remote(source):
            return resolve_tokenizer(source, revision)
        return self._have(S3Uri.parse(source), revision, "settings", lambda done, total, name: None).path

    def close(self) -> None:
        """Let others evict what this process used; a fetch under way stops. Idempotent."""
        self._stop.set()
        with self._lock:
            leases, self._leases = self._leases, {}
        for lease in leases.values():
            lease.close()

    def _have(self, uri: S3Uri, revision: str | None, wanted: Wanted, on_bytes: OnBytes) -> Located:
        cache = WeightsCache(self._config.folder, self._config.max_cache)
        manifest = cache.manifest(revision) if revision and revision.isalnum() else None
        if manifest is None:
            manifest = self._take_stock(uri, revision)
        digest = manifest.digest
        self._lease(cache, digest)
        while missing := _missing(cache, manifest, wanted):
            if self._stop.is_set():
                raise NotReady(f"{uri}: stopped while it was fetched")
            with cache.fetching(digest) as is_ours:
                if is_ours:
                    self._fetch(cache, manifest, _missing(cache, manifest, wanted), on_bytes)
                    continue
            _report_others(cache, manifest, missing, on_bytes)
            self._stop.wait(_POLL_S)
        folder = cache.folder(digest)
        path = folder / manifest.files[0].name if manifest.is_single_file else folder
        return Located(path, str(uri), digest)

    def _lease(self, cache: WeightsCache, digest: str) -> None:
        lease = cache.lease(digest)
        with self._lock:
            former = self._leases.pop(digest, None)
            self._leases[digest] = lease
        if former is not None:
            former.close()

    def _take_stock(self, uri: S3Uri, revision: str | None) -> Manifest:
        manifest = take_stock(self._store(uri.bucket), uri)
        if revision is not None and manifest.digest != revision:
            raise CheckpointError(
                f"{uri}: holds version {manifest.digest}, not {revision}; it was overwritten, or model.revision is "
                "wrong. Give each version of a model its own folder"
            )
        return manifest

    def _fetch(self, cache: WeightsCache, manifest: Manifest, files: list[RemoteFile], on_bytes: OnBytes) -> None:
        started_s = time.monotonic()
        num_bytes = sum(file.num_bytes for file in files)
        logger.info("fetching weights", extra={"digest": manifest.digest, "num_bytes": num_bytes})
        cache.remember(manifest)
        try:
            transfers = self._transfers(cache, manifest.digest, files)
            try:
                Fetch(self._store(manifest.bucket), self._config.streams, on_bytes, self._stop).run(transfers)
            finally:
                for transfer in transfers:
                    transfer.partial.close()
        except Stopped:
            raise NotReady("stopped while weights were fetched; what is there stays") from None
        except OSError as error:
            raise CheckpointError(
                f"{cache.root}: {error.strerror} while weights were written; use another folder (weights.cache)"
            ) from None
        seconds = time.monotonic() - started_s
        logger.info("weights fetched", extra={"num_bytes": num_bytes, "seconds": round(seconds, 2)})

    def _store(self, bucket: str) -> ObjectStore:
        # A client takes a tenth of a second to make.
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = self._open_store(bucket, self._config.streams)
            return self._stores[bucket]

    def _transfers(self, cache: WeightsCache, digest: str, files: list[RemoteFile]) -> list[Transfer]:
        """Return the files on their way, with the disk space that they will need taken."""
        folder = cache.partial_folder(digest)
        needed = sum(max(0, file.num_bytes - allocated_bytes(folder / file.name)) for file in files)
        with cache.making_room(needed):
            return [
                Transfer(
                    file,
                    PartialFile(folder / file.name, file.num_bytes, self._config.part, file.etag),
                    cache.folder(digest) / file.name,
                )
                for file in files
            ]


def _missing(cache: WeightsCache, manifest: Manifest, wanted: Wanted) -> list[RemoteFile]:
    folder = cache.folder(manifest.digest)
    return [file for file in manifest.choose(wanted) if not (folder / file.name).exists()]


def _report_others(cache: WeightsCache, manifest: Manifest, missing: list[RemoteFile], on_bytes: OnBytes) -> None:
    """Say how far another process is: whole files only."""
    total = sum(file.num_bytes for file in manifest.files)
    on_bytes(total - sum(file.num_bytes for file in missing), total, "fetched by another process")
