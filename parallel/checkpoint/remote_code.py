"""Checkpoints that want code of their own run are refused: nothing here would run it, and without it they are wrong."""

from core.errors import UnsupportedModel
from parallel.checkpoint.fields import Fields


def refuse_remote_code(fields: Fields) -> None:
    """Raise UnsupportedModel if the settings ask, at any depth, for Python code that comes with the checkpoint."""
    waiting: list[object] = [fields.values]
    while waiting:
        match waiting.pop():
            case dict() as values:
                if values.get("auto_map") or values.get("trust_remote_code"):
                    raise UnsupportedModel(
                        f"{fields.where}: auto_map or trust_remote_code asks for code of its own, which is "
                        "never run; use a checkpoint of a supported architecture as transformers itself has it"
                    )
                waiting += values.values()
            case list() as items:
                waiting += items
            case _:
                pass
