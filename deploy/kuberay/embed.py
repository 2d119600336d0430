"""`python deploy/kuberay/embed.py`: puts the Serve configs of `configs/` into the manifests beside this file.

A manifest names its config in the annotation `eagleray/serve-config`; what is different in pods stands in
`serve-changes.yaml` beside it. So there is one copy to edit, and a test that compares. With `--check`: exit code 1 if a
manifest is not up to date. Another config: change the annotation, run this, and look at the difference.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ANNOTATION = "eagleray/serve-config"
CHANGES = "serve-changes.yaml"
MANIFEST = "rayservice.yaml"
_START = "  serveConfigV2: |\n"


def main(argv: Sequence[str]) -> int:
    """Write every manifest, or compare it; return the exit code."""
    stale = [path for path in manifests() if path.read_text(encoding="utf-8") != embedded(path)]
    for path in stale:
        if "--check" in argv:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not up to date; run: python deploy/kuberay/embed.py\n")
        else:
            path.write_text(embedded(path), encoding="utf-8")
            sys.stdout.write(f"written: {path.relative_to(ROOT)}\n")
    return 1 if stale and "--check" in argv else 0


def manifests() -> list[Path]:
    """Return every RayService manifest."""
    return sorted(HERE.glob(f"*/{MANIFEST}"))


def embedded(path: Path) -> str:
    """Return the text that the manifest should have; all but the block of its Serve config stays as it is."""
    text = path.read_text(encoding="utf-8")
    source = yaml.safe_load(text)["metadata"]["annotations"][ANNOTATION]
    before, _, rest = text.partition(_START)
    lines = rest.splitlines(keepends=True)
    # The block ends where something stands further to the left than its own text.
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("    ")), len(lines))
    head = f"# Made from {source} and {CHANGES} by deploy/kuberay/embed.py: edit those.\n"
    block = head + yaml.safe_dump(serve_config(ROOT / source, path.parent / CHANGES), sort_keys=False, width=110)
    indented = "".join(f"    {line}" if line.strip() else line for line in block.splitlines(keepends=True))
    return before + _START + indented + "".join(lines[end:])


def serve_config(source: Path, changes: Path) -> dict[str, Any]:
    """Return a Serve config with what is different in pods."""
    return merged(
        yaml.safe_load(source.read_text(encoding="utf-8")), yaml.safe_load(changes.read_text(encoding="utf-8"))
    )


def merged(base: Any, changes: Any) -> Any:
    """Return `base` with `changes` in it: mappings by key, lists of named things by name, all else replaced.

    Raises KeyError for a name that `base` does not have: a change that changes nothing is a mistake.
    """
    if isinstance(base, dict) and isinstance(changes, dict):
        both = {key: merged(base[key], changes[key]) for key in base if key in changes}
        return base | changes | both
    if (
        isinstance(base, list)
        and isinstance(changes, list)
        and all(isinstance(c, dict) and "name" in c for c in changes)
    ):
        wanted = {change["name"]: change for change in changes}
        if unknown := wanted.keys() - {item["name"] for item in base}:
            raise KeyError(f"{', '.join(sorted(unknown))}: no such name among {[item['name'] for item in base]}")
        return [merged(item, wanted.get(item["name"], {})) for item in base]
    return changes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
