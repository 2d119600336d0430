"""The base of every configuration class: frozen, unknown keys refused, field docstrings kept for the schema."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import InvalidConfig


class Config(BaseModel):
    """A value object whose fields are promises: typed, bounded, documented under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )

    @classmethod
    def parse(cls, data: Any, where: str) -> Self:
        """Build from plain data. Raises InvalidConfig that names `where`, every bad key and its value."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InvalidConfig(f"{where}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """Return one line for all problems of a validation: `path: message (got value)`, joined by semicolons."""
    lines: list[str] = []
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        shown = repr(problem["input"])
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        lines.append(f"{path}: {problem['msg']} (got {shown})")
    return "; ".join(lines)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises InvalidConfig if it cannot be read or is not a mapping."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InvalidConfig(f"{path}: the top level must be a mapping, got {type(data).__name__}")
    return data
