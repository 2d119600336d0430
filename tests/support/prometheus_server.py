"""The real Prometheus, on a free port of 127.0.0.1, with a folder of its own."""

import json
import math
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.support.serve_instance import free_port, wait_until

MISSING = "no prometheus or promtool on this machine; install Debian's package prometheus"
_ROOT = Path(__file__).resolve().parents[2]
_FILES = _ROOT / "deploy" / "prometheus"


def is_installed() -> bool:
    """Return whether both programs are there."""
    return all(map(shutil.which, ("prometheus", "promtool")))


def promtool(*arguments: str, folder: Path = _FILES, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; returns what it said."""
    return subprocess.run(
        ["promtool", *arguments], cwd=folder, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


class Sample(NamedTuple):
    """One series of an instant query."""

    labels: dict[str, str]
    value: float


class PrometheusServer:
    """Runs with the files of deploy/prometheus, but for the target, the key's file and the pace."""

    def __init__(self, folder: Path, target: str, key: str, scrape_interval: str = "1s") -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        shutil.copytree(_FILES, folder, dirs_exist_ok=True)
        config = yaml.safe_load((folder / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": scrape_interval, "evaluation_interval": scrape_interval}
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        job["authorization"]["credentials_file"] = str(folder / "eagleray.key")
        (folder / "eagleray.key").write_text(key)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def query(self, query: str) -> list[Sample]:
        """Return the series of an instant query; values that are no number are left out."""
        answer = self._get("/api/v1/query", query=query)
        found = [Sample(one["metric"], float(one["value"][1])) for one in answer["result"]]
        return [sample for sample in found if not math.isnan(sample.value)]

    def number(self, query: str) -> float:
        """Return the only series' value; 0 if there is none."""
        found = self.query(query)
        assert len(found) <= 1, found
        return found[0].value if found else 0.0

    def active_targets(self) -> list[dict[str, Any]]:
        """Return what is known of the targets."""
        return self._get("/api/v1/targets")["activeTargets"]

    def wait_for(self, query: str, timeout_s: float = 20.0) -> None:
        """Return once the query has a series; fails the test after `timeout_s`."""
        wait_until(lambda: self._has(query), timeout_s, f"Prometheus: {query}")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _has(self, query: str) -> bool:
        try:
            return bool(self.query(query))
        except OSError:
            return False  # it does not listen yet

    def _get(self, path: str, **arguments: str) -> Any:
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(arguments)}", timeout=10) as answer:
            return json.loads(answer.read())["data"]
