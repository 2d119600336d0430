"""`python -m deployments.metrics`: writes docs, dashboards and Prometheus' files from the table."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from deployments.metrics.views.dashboards import DASHBOARDS
from deployments.metrics.views.docs import metrics_page
from deployments.metrics.views.grafana import dashboard_json
from deployments.metrics.views.prometheus import SCRAPE, alert_tests, alerts, rules

ROOT = Path(__file__).resolve().parents[2]
EXIT_STALE = 1


def files() -> Mapping[str, str]:
    """Return the text of every file, by its path in the repository."""
    found = {
        "docs/metrics.md": metrics_page(),
        "deploy/prometheus/prometheus.yml": SCRAPE,
        "deploy/prometheus/rules.yaml": rules(),
        "deploy/prometheus/alerts.yaml": alerts(),
        "deploy/prometheus/alerts_test.yaml": alert_tests(),
    }
    return found | {f"deploy/grafana/{board.name}.json": dashboard_json(board) for board in DASHBOARDS}


def stale(root: Path) -> list[str]:
    """Return the paths of files that are not as they would be written."""
    return [path for path, text in files().items() if not _is(root / path, text)]


def main(argv: list[str]) -> int:
    """Write, or look; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deployments.metrics", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")
    options = parser.parse_args(argv)
    changed = stale(ROOT)
    for path in changed:
        sys.stdout.write(
            f"{path}: {'out of date; run python -m deployments.metrics' if options.check else 'written'}\n"
        )
        if not options.check:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(files()[path], encoding="utf-8")
    return EXIT_STALE if options.check and changed else 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
