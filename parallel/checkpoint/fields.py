"""Typed reading of untrusted settings (config.json, GGUF metadata). A refusal names file, field and value."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from core.errors import CheckpointError

MAX_JSON_BYTES = 256 * 1024 * 1024
"""A tokenizer.json of a 256 k vocabulary is about 35 MB; anything over this is not a settings file."""


class Fields:
    """The settings of one file. A field that is null counts as absent."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, least: int = 1, most: int = 2**31 - 1) -> int:
        """Return a required whole number. Raises CheckpointError."""
        value = self.integer_or_none(name, least, most)
        if value is None:
            raise self.missing(name)
        return value

    def integer_or_none(self, name: str, least: int = 1, most: int = 2**31 - 1) -> int | None:
        """Return a whole number, or None when absent. Raises CheckpointError."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def number_or_none(self, name: str, above: float, most: float) -> float | None:
        """Return a finite number in (above, most], or None when absent. Raises CheckpointError."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            raise self.wrong(name, f"a number over {above:g}, at most {most:g}")
        return float(value)

    def number(self, name: str, above: float, most: float) -> float:
        """Return a required finite number in (above, most]. Raises CheckpointError."""
        value = self.number_or_none(name, above, most)
        if value is None:
            raise self.missing(name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false; `default` when absent. Raises CheckpointError."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text_or_none(self, name: str) -> str | None:
        """Return text, or None when absent. Raises CheckpointError."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of text; empty when absent. Raises CheckpointError."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of text")
        return tuple(value)

    def integers(self, name: str, least: int = 0, most: int = 2**31 - 1) -> tuple[int, ...]:
        """Return one whole number or a list of them as a tuple; empty when absent. Raises CheckpointError."""
        value = self.values.get(name)
        if value is None:
            return ()
        items: list[int] = []
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool) or not isinstance(item, int) or not least <= item <= most:
                raise self.wrong(name, f"a whole number, or a list of them, from {least} to {most}")
            items.append(item)
        return tuple(items)

    def nested(self, name: str) -> "Fields | None":
        """Return the fields of an object inside, or None when absent or empty. Raises CheckpointError."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.where}: {name}") if value else None

    def missing(self, name: str) -> CheckpointError:
        """Return the error for an absent field."""
        return CheckpointError(f"{self.where}: {name} is missing; the file is incomplete or of another kind of model")

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        """Return the error for a field of a wrong type or size."""
        shown = repr(self.values.get(name))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return CheckpointError(f"{self.where}: {name}={shown} is not {wanted}; correct the file")


def read_json_object(path: Path) -> dict[str, object]:
    """Return the object in a JSON file. Raises CheckpointError naming the file, also for NaN and Infinity."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes are too many for a settings file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); download it again") from None
    return parse_json_object(text, str(path))


def parse_json_object(text: str | bytes, where: str, unique_keys: bool = False) -> dict[str, object]:
    """Return the object that `text` spells. Raises CheckpointError for bad JSON, NaN, deep nesting or another type."""
    pairs = _unique if unique_keys else dict
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({error}); the file is damaged, download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{where}: holds a JSON {type(value).__name__}, not an object; this is another kind of file"
        )
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} appears twice")
    return values


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is out of range")
    return value
