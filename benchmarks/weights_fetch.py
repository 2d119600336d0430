"""`python -m benchmarks.weights_fetch`: fetching a model in ranges beside one plain stream, from the same server.

The server is a process on this machine that speaks enough of S3. It answers as fast as it can, then as S3 does: each
connection has a rate of its own. Both ways end with the file on the disk (fsync); ours also verifies a checksum.
"""

import argparse
import base64
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import psutil

from benchmarks.report import shown, write_report
from cluster.weights.config import WeightsConfig
from cluster.weights.model_files import ModelFiles

_ETAG = '"benchmark"'
_CHUNK_BYTES = 2**20
_KEY = "models/model.gguf"


class Round(NamedTuple):
    """One fetch."""

    seconds: float
    cpu_s: float
    """Of this process; the server's is its own."""


def main(argv: Sequence[str]) -> int:
    """Measure, print, write the results file if asked; return the exit code."""
    options = _parser().parse_args(argv)
    started_at = datetime.now(UTC)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "source"
        source.write_bytes(os.urandom(2**20) * options.mib)
        cases = [_measure(source, Path(folder), rate, options) for rate in (None, options.rate_mb * 1e6)]
    for case in cases:
        print(case)
    if options.save:
        path = write_report("weights-fetch", started_at, {"bytes": options.mib * 2**20, "cases": cases})
        print(f"results: {shown(path)}")
    return 0


def _measure(source: Path, folder: Path, rate: float | None, options: argparse.Namespace) -> dict[str, object]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(source, rate, sender), daemon=True)
    server.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{receiver.recv()}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    plain: list[Round] = []
    ours: list[Round] = []
    try:
        with patch.dict(os.environ, environment):
            # In turns: what else the machine does hits both.
            for _ in range(options.rounds):
                plain.append(_timed(lambda: _copy_plainly(folder / "plain")))
                ours.append(_timed(lambda: _fetch(folder / "cache", options.streams)))
                shutil.rmtree(folder / "cache")
    finally:
        server.kill()
        server.join()
    return _figures(source.stat().st_size, rate, options.streams, plain, ours)


def _figures(
    num_bytes: int, rate: float | None, num_streams: int, plain: Sequence[Round], ours: Sequence[Round]
) -> dict[str, object]:
    def mb_per_s(rounds: Sequence[Round]) -> float:
        return round(num_bytes / 1e6 / statistics.median(each.seconds for each in rounds), 1)

    return {
        "server_mb_per_s_per_connection": None if rate is None else rate / 1e6,
        "streams": num_streams,
        "plain_mb_per_s": mb_per_s(plain),
        "fetch_mb_per_s": mb_per_s(ours),
        "ratio": round(mb_per_s(ours) / mb_per_s(plain), 2),
        "plain_cpu_s": round(statistics.median(each.cpu_s for each in plain), 3),
        "fetch_cpu_s": round(statistics.median(each.cpu_s for each in ours), 3),
        "plain_rounds_s": [round(each.seconds, 3) for each in plain],
        "fetch_rounds_s": [round(each.seconds, 3) for each in ours],
        "peak_rss_mib": round(psutil.Process().memory_info().rss / 2**20),
    }


def _timed(call: Callable[[], None]) -> Round:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    call()
    return Round(time.perf_counter() - started_s, time.process_time() - cpu_s)


def _fetch(cache: Path, num_streams: int) -> None:
    files = ModelFiles(WeightsConfig(cache=str(cache), streams=num_streams))
    files.locate(f"s3://{_KEY}", None, lambda done, total, name: None)
    files.close()


def _copy_plainly(target: Path) -> None:
    from boto3.session import Session

    bucket, _, key = _KEY.partition("/")
    body = Session().client("s3").get_object(Bucket=bucket, Key=key)["Body"]
    with target.open("wb") as file:
        shutil.copyfileobj(body, file, _CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _serve(source: Path, rate: float | None, ready: Connection) -> None:
    checksum = base64.b64encode(zlib.crc32(source.read_bytes()).to_bytes(4, "big")).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._begin(200, source.stat().st_size)

        def do_GET(self) -> None:
            size = source.stat().st_size
            wanted = self.headers.get("Range", f"bytes=0-{size - 1}").removeprefix("bytes=").split("-")
            start, end = int(wanted[0]), int(wanted[1]) + 1
            self._begin(206 if "Range" in self.headers else 200, end - start)
            self.wfile.flush()
            with source.open("rb") as file:
                while start < end:
                    sent = os.sendfile(self.connection.fileno(), file.fileno(), start, min(_CHUNK_BYTES, end - start))
                    start += sent
                    if rate is not None:
                        time.sleep(sent / rate)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _begin(self, status: int, num_bytes: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(num_bytes))
            self.send_header("ETag", _ETAG)
            if self.headers.get("x-amz-checksum-mode") == "ENABLED" and self.command == "HEAD":
                self.send_header("x-amz-checksum-crc32", checksum)
                self.send_header("x-amz-checksum-type", "FULL_OBJECT")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_address[1])
    server.serve_forever()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights_fetch", description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="size of the file")
    parser.add_argument("--streams", type=int, default=16, help="ranges at the same time")
    parser.add_argument("--rounds", type=int, default=3, help="fetches of each kind; the median counts")
    parser.add_argument("--rate-mb", type=float, default=20.0, help="MB/s of a connection in the second case")
    parser.add_argument("--folder", help="where files are written; default is the temporary folder")
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
