"""API keys as configured: who has one, what it may do and how much of it. Only hashes of keys are ever written down."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints

from core.config import Config, read_yaml

Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
KeyScope = Literal["all", "api", "metrics"]
KeyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

METRICS_PATH = "/metrics"


class ApiKey(Config):
    """One API key. Rates are those of one gateway copy: with three copies a key may do up to three times as much."""

    name: KeyName
    """What logs and metrics call the key; no two have the same."""
    sha256: Sha256Hex
    """SHA-256 (hex) of the key; `python -m deployments.keys new --name NAME` makes both."""
    tenant: KeyName | None = None
    """Keys of one tenant share cached prefixes, keys of different tenants never do. Default: the key's name."""
    models: tuple[str, ...] = ()
    """Public names of the models that exist for this key. Empty: all."""
    scope: KeyScope = "all"
    """What the key opens: `api` everything but `/metrics`, `metrics` nothing else (for Prometheus), `all` both. A
    key with `models` of its own never opens `/metrics`, which names all models and tenants."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Requests of a smaller number run first. Callers may add to it, which puts them further back."""
    requests_per_minute: PositiveInt | None = None
    """Most requests a minute, of any kind; a pause saves up to one minute's worth."""
    tokens_per_minute: PositiveInt | None = None
    """Most tokens a minute: prompt and max_tokens when a request starts, of which what was not used is given back."""
    max_concurrent: PositiveInt | None = None
    """Most requests open at the same time."""

    def may_ask(self, path: str) -> bool:
        """Return whether the key opens a path."""
        if path == METRICS_PATH:
            return self.scope == "metrics" or (self.scope == "all" and not self.models)
        return self.scope != "metrics"

    @property
    def digest(self) -> bytes:
        """The hash as `digest_of` gives it."""
        return bytes.fromhex(self.sha256)


class ApiKeyFile(Config):
    """What `api_keys_file` holds."""

    api_keys: tuple[ApiKey, ...]
    """Every key that is let in, besides those of the gateway's own configuration."""


def digest_of(key: str) -> bytes:
    """Return the hash by which `key` is known."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def nameless_keys(hashes: Iterable[str]) -> list[ApiKey]:
    """Return keys of which only hashes are configured: each a tenant of its own, unlimited."""
    return [ApiKey(name=f"key-{sha256[:12]}", sha256=sha256) for sha256 in hashes]


def read_key_file(path: Path) -> list[ApiKey]:
    """Return the keys in a YAML file; blocks. Raises InvalidConfig."""
    return list(ApiKeyFile.parse(read_yaml(path), str(path)).api_keys)


def duplicates(keys: Sequence[ApiKey]) -> list[str]:
    """Return the names of keys that share a name, or are the same key, with another one."""
    names = Counter(key.name for key in keys)
    hashes = Counter(key.sha256 for key in keys)
    return sorted({key.name for key in keys if names[key.name] > 1 or hashes[key.sha256] > 1})
