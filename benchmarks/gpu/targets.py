"""The goals for one H200, beside what was reached."""

from typing import NamedTuple

from benchmarks.gpu.sections import Figures


class Target(NamedTuple):
    """A goal for one figure of one row."""

    section: str
    row: str
    figure: str
    goal: float
    is_at_least: bool = True


TARGETS = (
    Target("decode", "8B bf16, KV bf16: decode 1", "share_of_bandwidth", 0.75),
    Target("decode", "8B bf16, KV bf16: decode 256", "share_of_bandwidth", 0.65),
    Target("decode", "8B fp8, KV bf16: decode 1", "share_of_bandwidth", 0.60),
    Target("decode", "8B bf16, KV bf16: prefill 8192", "share_of_matmul_rate", 0.50),
    Target("decode", "8B bf16, KV bf16: decode 1", "step_over_replay", 1.05, is_at_least=False),
    Target("decode", "8B bf16, KV bf16: decode 256", "step_over_replay", 1.05, is_at_least=False),
    Target("decode", "0.6B bf16, KV bf16: decode 1", "step_over_replay", 1.05, is_at_least=False),
    Target("attention", "decode 64 rows of 4096", "share_of_bandwidth", 0.70),
)


def compare(sections: dict[str, dict[str, Figures]]) -> list[Figures]:
    """Return each goal with what was measured; nothing is reached that was not measured."""
    rows: list[Figures] = []
    for target in TARGETS:
        found = sections.get(target.section, {}).get(target.row, {}).get(target.figure)
        is_reached = found is not None and (found >= target.goal if target.is_at_least else found <= target.goal)
        rows.append({**target._asdict(), "found": found, "is_reached": is_reached})
    kernels = [figures for figures in sections.get("kernels", {}).values() if "skipped" not in figures]
    wrong = sum(not figures.get("is_right", False) for figures in kernels)
    if kernels:
        rows.append(
            {"section": "kernels", "row": f"all {len(kernels)}", "figure": "wrong or failed", "goal": 0.0,
             "is_at_least": False, "found": wrong, "is_reached": wrong == 0}
        )  # fmt: skip
    return rows


def table(rows: list[Figures]) -> str:
    """Return the comparison as text."""
    lines = []
    for row in rows:
        bound = ">=" if row["is_at_least"] else "<="
        found = "not measured" if row["found"] is None else f"{row['found']:g}"
        verdict = "reached" if row["is_reached"] else "NOT reached"
        lines.append(f"{row['row']}, {row['figure']}: {found} (goal {bound} {row['goal']:g}) {verdict}")
    return "\n".join(lines)
