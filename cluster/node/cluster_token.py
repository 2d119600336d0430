"""The cluster's token: who has it may run code on every machine, so it is kept in memory and for root alone."""

import os
from pathlib import Path
from typing import Any

from cluster.node.aws import ask_aws
from cluster.node.errors import BootFailed, NotYet

_MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
_SHORTEST = 16


def fetch_token(secrets: Any, secret_arn: str) -> str:
    """Return the token that Secrets Manager holds. Raises NotYet while it cannot be read, BootFailed if it is none."""
    where = f"secret {secret_arn}"
    answer = ask_aws(where, lambda: secrets.get_secret_value(SecretId=secret_arn))
    token = (answer.get("SecretString") or "").strip()
    if not token:
        raise NotYet(f"{where} has no text value; put the token in as SecretString")
    # The value itself is never shown.
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise BootFailed(
            f"{where} holds no token: {len(token)} characters; use {_SHORTEST} or more, letters and digits"
        )
    return token


def keep_token(token: str, path: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Write the token to `path` for its owner alone, whole or not at all. Raises BootFailed if a disk would keep it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    kind = file_system_of(path.parent, mounts.read_text(encoding="utf-8"))
    if kind not in _MEMORY_FILE_SYSTEMS:
        raise BootFailed(
            f"{path.parent} is on {kind}, and the cluster's token must not reach a disk; mount a tmpfs there or on /run"
        )
    path.parent.chmod(0o700)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(token)
    draft.rename(path)


def file_system_of(folder: Path, mounts: str) -> str:
    """Return the type of the file system a folder is on, given the kernel's list of mounts."""
    places = {folder.resolve(), *folder.resolve().parents}
    found = ("", "unknown")
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        # Of equally long ones the later hides the earlier.
        if Path(place) in places and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]
