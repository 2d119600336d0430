"""What of Ray is on this machine: its token, sessions that ended, ranks that nobody owns."""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.sizes import show_bytes
from deployments.doctor.finding import Finding, note, ok, problem, warning

LEFTOVER_BYTES = 2**30
_MAX_FILES = 50_000
"""Counting the sizes of leftovers ends here."""
_DAEMONS = frozenset({"raylet", "gcs_server"})
_RANK = "ray::RankActor"


@dataclass(frozen=True)
class TokenFacts:
    """Ray's authentication, as this user's processes would have it."""

    mode: str | None
    """RAY_AUTH_MODE."""
    has_value: bool
    """RAY_AUTH_TOKEN is set."""
    path: str
    """The file that would be read."""
    num_bytes: int | None
    """Of the token in it; None: there is no such file."""
    mode_bits: int
    """Its permissions."""


@dataclass(frozen=True)
class SessionFacts:
    """Ray's processes and folders."""

    num_daemons: int
    """Raylets and GCS servers that run."""
    num_ended: int
    """Session folders that no daemon uses."""
    ended_bytes: int
    orphans: tuple[int, ...]
    """Processes of ranks whose raylet is gone."""


def gather_token(environment: Mapping[str, str]) -> TokenFacts:
    """Return where a token is, never the token."""
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    num_bytes, bits = None, 0
    if path.is_file():
        num_bytes, bits = len(path.read_bytes().strip()), stat.S_IMODE(path.stat().st_mode)
    mode = environment.get("RAY_AUTH_MODE")
    return TokenFacts(mode, bool(environment.get("RAY_AUTH_TOKEN")), str(path), num_bytes, bits)


def check_token(facts: TokenFacts) -> Iterator[Finding]:
    """Yield whether strangers could command a cluster that is started here."""
    has_token = facts.has_value or bool(facts.num_bytes)
    if facts.mode == "disabled":
        yield warning(
            "node.ray_token",
            "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports may run any code",
            "set RAY_AUTH_MODE=token and give every node the same token",
        )
    elif facts.mode == "token" and not has_token:
        yield problem(
            "node.ray_token",
            f"RAY_AUTH_MODE=token, and there is no token (RAY_AUTH_TOKEN, or a file at {facts.path})",
            "`ray get-auth-token --generate` makes one; every node needs the same",
        )
    elif not has_token:
        yield note(
            "node.ray_token",
            "no Ray token: fine on one machine, where `ray.init` makes its own",
            "before `ray start` on a cluster: `ray get-auth-token --generate`, the same token on every node",
        )
    elif not facts.has_value and facts.mode_bits & 0o077:
        yield warning(
            "node.ray_token",
            f"{facts.path} may be read by others (mode {facts.mode_bits:03o})",
            f"chmod 600 {facts.path}",
        )
    else:
        yield ok("node.ray_token", "RAY_AUTH_TOKEN is set" if facts.has_value else f"token in {facts.path}")


def gather_sessions() -> SessionFacts:
    """Return what is left of Ray's earlier runs."""
    root = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    daemons, ranks = _processes()
    folders = sorted((path for path in root.glob("session_2*") if path.is_dir()), reverse=True)
    # Which session a raylet belongs to, only its own arguments say.
    in_use = {folder for folder in folders if any(str(folder) in line for line in daemons.values())}
    ended = [folder for folder in folders if folder not in in_use]
    orphans = tuple(pid for pid, parents in ranks.items() if not parents & daemons.keys())
    return SessionFacts(len(daemons), len(ended), _size(ended), orphans)


def check_sessions(facts: SessionFacts) -> Iterator[Finding]:
    """Yield what earlier runs left behind."""
    if facts.orphans:
        yield problem(
            "node.ray_leftovers",
            f"ranks without a raylet still hold memory: pids {', '.join(map(str, facts.orphans[:8]))}",
            f"kill {' '.join(map(str, facts.orphans[:8]))}",
        )
    found = f"{facts.num_ended} folders of ended Ray sessions, {show_bytes(facts.ended_bytes)}"
    if facts.ended_bytes > LEFTOVER_BYTES:
        yield warning("node.ray_leftovers", found, "delete the older session_* folders under Ray's temp folder")
    else:
        yield ok("node.ray_leftovers", found)
    if facts.num_daemons:
        yield note("node.ray_running", f"Ray runs here: {facts.num_daemons} raylets and GCS servers")


def _processes() -> tuple[dict[int, str], dict[int, set[int]]]:
    """Return the command lines of Ray's daemons, and the ancestors of every rank, by pid."""
    daemons: dict[int, str] = {}
    ranks: dict[int, set[int]] = {}
    for process in psutil.process_iter(["name", "cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        try:
            if process.info["name"] in _DAEMONS:
                daemons[process.pid] = line
            elif line.startswith(_RANK):
                ranks[process.pid] = {parent.pid for parent in process.parents()}
        except psutil.Error:
            continue  # it ended meanwhile
    return daemons, ranks


def _size(folders: list[Path]) -> int:
    total = num_files = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                num_files += 1
                if num_files > _MAX_FILES:
                    return total
                try:
                    total += os.lstat(os.path.join(place, name)).st_size
                except OSError:
                    continue  # deleted meanwhile
    return total
