"""The results as one picture: capacities, latencies, what many routers lose, what scaling costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # No display needed.

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.routing.plan import Results
from benchmarks.routing.policies import OURS


def plot_results(results: Results, path: Path) -> None:
    """Write bars to `path`: ours filled, the others' outlined."""
    figure, axes = pyplot.subplots(2, 2, figsize=(14, 9), layout="constrained")
    trace = next(iter(results.runs))
    _bars(axes[0][0], results.capacities[trace], f"requests/s at 90 % SLO: {trace}")
    ttft_s = {name: run.ttft_mean_s for name, run in results.runs[trace].items()}
    _bars(axes[0][1], ttft_s, f"mean TTFT, s, at {results.rates_per_s[trace]:.2f} requests/s: {trace}")
    attainment = {name: run.attainment for name, run in results.copies.items()}
    _bars(axes[1][0], attainment, "SLO attainment by the number of routers and what they know", marked=())
    _scatter(axes[1][1], results)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axes: Axes, values: Mapping[str, float], title: str, marked: Sequence[str] = (OURS,)) -> None:
    colours = ["C0" if name in marked or not marked else "lightgrey" for name in values]
    drawn = axes.barh(list(values), list(values.values()), color=colours)
    axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10)


def _scatter(axes: Axes, results: Results) -> None:
    name, runs = next(iter(results.scaling.items()))
    for scaler, run in runs.items():
        axes.scatter(
            run.replica_seconds / 1000, run.figures.attainment, color="C0" if scaler == "token_work" else "grey"
        )
        axes.annotate(scaler, (run.replica_seconds / 1000, run.figures.attainment), fontsize=8)
    axes.margins(0.15)
    axes.set(xlabel="thousand replica-seconds", ylabel="SLO attainment")
    axes.set_title(f"autoscaling: {name}", fontsize=10)
