"""Pictures of a run: one PNG beside its results file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # No display needed.

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.metrics import Outcome, gaps


def plot_run(outcomes: Sequence[Outcome], title: str, path: Path) -> None:
    """Write TTFT and ITL as cumulative distributions and the throughput over time to `path`."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    figure, (ttft, itl, throughput) = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    _cumulative(ttft, [1000 * outcome.ttft_s for outcome in good], "TTFT, ms")
    _cumulative(itl, [1000 * gap for gap in gaps(good)], "ITL, ms")
    _events_per_second(throughput, good)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_bars(
    groups: Sequence[str], series: Mapping[str, Sequence[float]], axis_label: str, title: str, path: Path
) -> None:
    """Write grouped bars to `path`: one group per name, one bar per series, each with its value on top."""
    figure, axes = pyplot.subplots(figsize=(2 + 2.2 * len(groups), 4.5), layout="constrained")
    width = 0.8 / max(1, len(series))
    for index, (label, values) in enumerate(series.items()):
        positions = np.arange(len(groups)) + (index - (len(series) - 1) / 2) * width
        axes.bar_label(axes.bar(positions, values, width, label=label), fmt="%.0f", fontsize=8)
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set_ylabel(axis_label)
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_stacked(bars: Mapping[str, Mapping[str, float]], axis_label: str, title: str, path: Path) -> None:
    """Write one bar per name to `path`, divided into the shares of its parts; every bar has all parts."""
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.7 * len(bars)), layout="constrained")
    wholes = {name: sum(parts.values()) for name, parts in bars.items()}
    left = np.zeros(len(bars))
    for part in next(iter(bars.values())):
        shares = np.array([100 * bars[name][part] / wholes[name] for name in bars])
        drawn = axes.barh([f"{name} ({wholes[name]:.2f} ms)" for name in bars], shares, left=left, label=part)
        axes.bar_label(
            drawn, [f"{share:.0f}" if share >= 4 else "" for share in shares], label_type="center", fontsize=8
        )
        left += shares
    axes.invert_yaxis()
    axes.set(xlabel="share of the time of an output token, %", ylabel=axis_label, xlim=(0, 100))
    axes.set_title(title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _cumulative(axes: Axes, values: Sequence[float], label: str) -> None:
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    axes.step(ordered, np.arange(1, len(ordered) + 1) / max(1, len(ordered)), where="post")
    for share in (0.5, 0.99):
        axes.axhline(share, color="grey", linewidth=0.5)
    axes.set(xlabel=label, ylabel="share of all", ylim=(0, 1.02))


def _events_per_second(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    start = min((outcome.sent_at for outcome in outcomes), default=0.0)
    times = [at - start for outcome in outcomes for at in outcome.text_at]
    if times:
        num_bins = max(10, min(120, int(max(times))))
        counts, edges = np.histogram(times, bins=num_bins, range=(0.0, max(times)))
        axes.stairs(counts / np.diff(edges), edges)
    axes.set(xlabel="seconds since the first request", ylabel="events with text per second")
