"""From what a configuration says (`model.source`) to files on this machine. No torch."""

from pathlib import Path


def resolve_checkpoint(source: str, revision: str | None = None) -> Path:
    """Return the local folder or .gguf file that `source` names, downloading it if it is a hub id; blocks.

    Forms: a local folder, a local .gguf file, `package:NAME` (carried by an installed Python package), `org/name`
    (Hugging Face hub), `org/name:file.gguf` (one GGUF file of a hub repository). Raises CheckpointError.
    """
    raise NotImplementedError
