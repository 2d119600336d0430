"""`python terraform/tables.py [--check]`: the tables of inputs and outputs in README.md, from the modules' own words.

With --check nothing is written, and the exit code is 1 if README.md is not what would be. Needs python-hcl2.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hcl2

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README.md"
BEGIN, END = "<!-- tables: begin. Written by tables.py. -->", "<!-- tables: end -->"
MODULES = ("network", "token", "ingress", "cluster", "observability")
"""In the order in which a reader meets them."""

_OBJECT = re.compile(r"^(?P<outer>.*?)object\(\{(?P<inside>.*)\}\)(?P<close>\)*)$", re.DOTALL)
_COMMENT = re.compile(r"^ +(\w+) *=.*?# (.+)$", re.MULTILINE)
_OPTIONAL = re.compile(r"^optional\((?P<inside>.*)\)$", re.DOTALL)


class Field(NamedTuple):
    """A variable, an attribute of one, or an output."""

    name: str
    type: str
    default: str | None
    """None: it must be given."""
    description: str


def main(arguments: list[str]) -> int:
    """Bring the tables of README.md up to date, or say whether they are; return the exit code."""
    before = README.read_text(encoding="utf-8")
    head, _, rest = before.partition(BEGIN)
    _, _, tail = rest.partition(END)
    after = f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}"
    if arguments == ["--check"]:
        if before != after:
            sys.stderr.write("terraform/README.md is out of date; run python terraform/tables.py\n")
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


def tables() -> str:
    """Return the tables of every module as Markdown."""
    return "\n".join(_module(FOLDER / "modules" / name) for name in MODULES)


def _module(folder: Path) -> str:
    inputs = list(_inputs(folder / "variables.tf"))
    rows = [f"| `{f.name}` | {_code(f.type)} | {_default(f)} | {_cell(f.description)} |" for f in inputs]
    outputs = [f"| `{f.name}` | {_cell(f.description)} |" for f in _outputs(folder / "outputs.tf")]
    return "\n".join([
        *(f"### {folder.name}", "", "| input | type | default | |", "|---|---|---|---|", *rows),
        *("", "| output | |", "|---|---|", *outputs, ""),
    ])  # fmt: skip


def _inputs(path: Path) -> Iterator[Field]:
    """Yield each variable, and after one that holds objects each of their attributes."""
    for name, body in _blocks(path, "variable"):
        kind = str(body["type"]).removeprefix("${").removesuffix("}")
        default = _literal(body["default"]) if "default" in body else None
        matched = _OBJECT.match(kind)
        shown = kind if matched is None else f"{matched['outer']}object{matched['close']}"
        yield Field(name, shown, default, _text(body["description"]))
        if matched is not None:
            yield from _attributes(name, matched["inside"], _comments(path, name))


def _attributes(parent: str, inside: str, comments: dict[str, str]) -> Iterator[Field]:
    for item in _split(inside):
        name, _, kind = (part.strip() for part in item.partition("="))
        optional = _OPTIONAL.match(kind)
        description = comments.get(name, "")
        if optional is None:
            yield Field(f"{parent}.{name}", kind, None, description)
            continue
        kind, *default = _split(optional["inside"])
        yield Field(f"{parent}.{name}", kind, default[0] if default else "null", description)


def _comments(path: Path, variable: str) -> dict[str, str]:
    """Return what is said behind the attributes of a variable; the parser drops comments."""
    _, _, block = path.read_text(encoding="utf-8").partition(f'variable "{variable}" {{')
    return dict(_COMMENT.findall(block.partition("\n}\n")[0]))


def _outputs(path: Path) -> Iterator[Field]:
    for name, body in _blocks(path, "output"):
        yield Field(name, "", None, _text(body["description"]))


def _blocks(path: Path, kind: str) -> Iterator[tuple[str, dict[str, object]]]:
    with path.open(encoding="utf-8") as file:
        for block in hcl2.load(file).get(kind, []):
            for name, body in block.items():
                yield name.strip('"'), body


def _split(text: str) -> list[str]:
    """Return the parts between commas that are in no bracket and no string."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _text(value: object) -> str:
    return str(json.loads(str(value)))


def _literal(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(str(item) for item in value)}]"  # strings keep their quotes
    return value if isinstance(value, str) else json.dumps(value)


def _default(field: Field) -> str:
    return "required" if field.default is None else _code(field.default)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
