import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.bandwidth import MemoryReader
from benchmarks.peers.meter import CpuMeter, memory_mib
from benchmarks.peers.server import DidNotStart, Launch, free_port, running
from benchmarks.report import ROOT

pytestmark = pytest.mark.integration

SERVER = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

# A child that does not end when its parent does.
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_server_is_timed_and_weighed_and_no_process_of_it_is_left(tmp_path: Path):
    port = free_port()
    launch = Launch([sys.executable, "-c", SERVER, str(port)], port)
    with running(launch, tmp_path / "log", timeout_s=30) as server:
        assert 0 < server.start_s < 30
        members = [server.root, *server.root.children(recursive=True)]
        assert len(members) == 2
        assert memory_mib(server.root) > 5
        shares = CpuMeter(server.root).shares()
        assert shares.server >= 0 and shares.others >= 0
    assert not [member for member in members if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]


def test_server_that_ends_is_reported_with_its_last_words(tmp_path: Path):
    launch = Launch([sys.executable, "-c", "raise SystemExit('no such model')"], free_port())
    with pytest.raises(DidNotStart, match=r"(?s)ended with 1.*no such model"), running(launch, tmp_path / "log", 30):
        pass


def test_our_bare_server_loads_no_torch_beside_its_ranks():
    code = "import sys, benchmarks.peers.bare_server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_read_bandwidth_is_within_what_memory_can_do(tmp_path: Path):
    bandwidth = MemoryReader(tmp_path).measure(size_bytes=2**26, num_passes=2)
    assert 1e8 < bandwidth.one_core < 1e12 and 1e8 < bandwidth.all_cores < 1e12
