"""Where a model's files are, without fetching them: here, in the hub's cache, on the hub, in S3, or nowhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.weights.uri import is_remote
from core.errors import CheckpointError
from core.sizes import show_bytes
from deployments.doctor.finding import Finding, note, ok, problem, warning
from parallel.checkpoint.source import resolve_checkpoint

_HUB_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Location:
    """What is known of a model's files."""

    path: Path | None
    """Where they are on this machine; None: not here."""
    elsewhere: str = ""
    """`hub` or `s3` if they are to be fetched at the first start."""
    num_bytes: int | None = None
    """To fetch, if the hub says."""
    error: str = ""
    """Why they cannot be had."""
    is_certain: bool = True
    """Whether `error` is final; the hub may only be out of reach."""


def locate(source: str, revision: str | None) -> Location:
    """Return where the files of `model.source` are; asks the hub if need be, downloads nothing."""
    if is_remote(source):
        return Location(None, "s3")
    repo, _, file = source.partition(":")
    is_local = source.startswith(("package:", "/", "./", "../", "~")) or Path(source).exists()
    if is_local or repo.count("/") != 1:
        try:
            return Location(resolve_checkpoint(source, revision))
        except CheckpointError as error:
            return Location(None, error=error.message)
    return _cached(repo, file or "config.json", revision) or _on_hub(repo, file, revision)


def check(application: str, source: str, location: Location) -> Iterator[Finding]:
    """Yield whether the model can be had."""
    what = f"{application}: {source}"
    if location.path is not None:
        yield ok("config.model", f"{what} is here: {location.path}")
    elif location.error and location.is_certain:
        yield problem("config.model", f"{application}: {location.error}", "correct model.source")
    elif location.error:
        yield warning(
            "config.model",
            f"{what} is not on this machine, and the hub does not answer: {location.error}",
            "fetch it where there is a network, and give its folder; or set HF_ENDPOINT",
        )
    elif location.elsewhere == "s3":
        yield note("config.model", f"{what} is fetched from S3 at the first start; not looked at")
    else:
        size = f", {show_bytes(location.num_bytes)}" if location.num_bytes else ""
        yield note("config.model", f"{what} is on the hub{size}; every node fetches it at its first start")


def _cached(repo: str, file: str, revision: str | None) -> Location | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    if not isinstance(found, str):
        return None
    path = Path(found)
    return Location(path if path.suffix == ".gguf" else path.parent)


def _on_hub(repo: str, file: str, revision: str | None) -> Location:
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_HUB_TIMEOUT_S)
    except errors.GatedRepoError:
        return Location(None, error=f"{repo}: access is gated; accept its terms on the hub, then set HF_TOKEN")
    except errors.RepositoryNotFoundError:
        return Location(None, error=f"{repo}: no such repository on the hub, or it is private (HF_TOKEN)")
    except errors.RevisionNotFoundError:
        return Location(None, error=f"{repo}: no such revision: {revision}")
    # The hub library lets errors of its HTTP client through, which it replaces from time to time.
    except Exception as error:  # noqa: BLE001
        first = next(iter(str(error).splitlines()), "no answer")
        return Location(None, error=f"{type(error).__name__}: {first[:200]}", is_certain=False)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    if file and file not in sizes:
        return Location(None, error=f"{repo}: has no file {file}")
    wanted = [size for name, size in sizes.items() if (name == file if file else name.endswith(".safetensors"))]
    if not wanted:
        return Location(None, error=f"{repo}: holds no safetensors file; name one of its GGUF files, {repo}:FILE.gguf")
    return Location(None, "hub", sum(wanted))
