"""The results as text: the acceptance table first, then what stands behind it."""

from collections.abc import Mapping, Sequence

from benchmarks.routing.plan import Results
from benchmarks.routing.scaling import ScalingRun
from benchmarks.routing.slo import Figures


def as_text(results: Results) -> str:
    """Return every table there is."""
    tables = [_capacities(results.capacities)]
    for trace, runs in results.runs.items():
        tables.append(_figures(f"{trace} at {results.rates_per_s[trace]:.2f} req/s", runs))
    tables.append(_figures("routers on mooncake_conversation", results.copies))
    tables += [_scaling(name, runs) for name, runs in results.scaling.items()]
    return "\n\n".join(tables)


def _capacities(capacities: Mapping[str, Mapping[str, float]]) -> str:
    traces = list(capacities)
    rows = [
        [router, *(f"{capacities[trace][router]:.2f}" for trace in traces)]
        for router in next(iter(capacities.values()))
    ]
    return _table(["capacity, req/s", *traces], rows)


def _figures(title: str, runs: Mapping[str, Figures]) -> str:
    header = [title, "TTFT mean", "p50", "p99 s", "TPOT mean", "p99 ms", "SLO", "hit rate", "imbalance"]
    rows = [
        [
            name,
            f"{run.ttft_mean_s:.2f}",
            f"{run.ttft_p50_s:.2f}",
            f"{run.ttft_p99_s:.1f}",
            f"{1000 * run.tpot_mean_s:.0f}",
            f"{1000 * run.tpot_p99_s:.0f}",
            f"{run.attainment:.3f}",
            f"{run.hit_rate:.3f}",
            f"{run.imbalance:.2f}",
        ]
        for name, run in runs.items()
    ]
    return _table(header, rows)


def _scaling(title: str, runs: Mapping[str, ScalingRun]) -> str:
    header = [title, "replica-s", "SLO", "TTFT mean", "p99 s", "operations"]
    rows = [
        [
            name,
            f"{run.replica_seconds:.0f}",
            f"{run.figures.attainment:.3f}",
            f"{run.figures.ttft_mean_s:.2f}",
            f"{run.figures.ttft_p99_s:.1f}",
            str(run.num_operations),
        ]
        for name, run in runs.items()
    ]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(cells))
        for cells in ([*zip(row, widths, strict=True)] for row in (header, *rows))
    ]
    return "\n".join(lines)
