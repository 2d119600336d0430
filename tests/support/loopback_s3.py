"""S3 on 127.0.0.1, as much of one as fetching a model asks of it; and what goes wrong with it, on request."""

import base64
import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from awscrt.checksums import crc64nvme

Reply = tuple[int, bytes, dict[str, str]]

_CHUNK_BYTES = 256 * 1024


@dataclass
class LoopbackS3:
    """`objects` maps `bucket/key` to content. Use as a context."""

    objects: dict[str, bytes]
    denied: frozenset[str] = frozenset()
    """Buckets whose every request is answered with 403."""
    wrong_checksums: frozenset[str] = frozenset()
    """Objects whose checksum is another content's."""
    cuts: dict[str, int] = field(default_factory=dict)
    """How many GETs of an object still end in the middle."""
    bytes_per_s: float | None = None
    """Of one connection."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, bucket/key, range) of every request."""

    def start(self) -> dict[str, str]:
        """Serve; return the environment that sends every AWS client here."""
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self.environment

    def stop(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What sends every AWS client here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def ranges(self) -> list[tuple[str, str]]:
        """(bucket/key, range) of every GET of an object."""
        return [(path, wanted) for method, path, wanted in self.requests if method == "GET" and wanted]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, bucket: LoopbackS3) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.s3 = bucket


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        assert isinstance(self.server, _Server)
        s3, url = self.server.s3, urlsplit(self.path)
        path = unquote(url.path).strip("/")
        s3.requests.append((self.command, path, self.headers.get("Range", "")))
        bucket, _, key = path.partition("/")
        if bucket in s3.denied:
            self._send(_error(403, "AccessDenied"))
        elif not any(name.startswith(bucket + "/") for name in s3.objects):
            self._send(_error(404, "NoSuchBucket"))
        elif not key:
            self._send(_listing(s3, bucket, parse_qs(url.query).get("prefix", [""])[0]))
        elif path not in s3.objects:
            self._send(_error(404, "NoSuchKey"))
        elif self.headers.get("If-Match", etag := _etag(s3.objects[path])).strip('"') != etag:
            self._send(_error(412, "PreconditionFailed"))
        else:
            self._send_object(s3, path, etag)

    def _send_object(self, s3: LoopbackS3, path: str, etag: str) -> None:
        data = s3.objects[path]
        described = data + b"!" if path in s3.wrong_checksums else data
        checksum = crc64nvme(described).to_bytes(8, "big")
        headers = {"ETag": f'"{etag}"', "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
        if self.headers.get("x-amz-checksum-mode") == "ENABLED":
            headers |= {
                "x-amz-checksum-crc64nvme": base64.b64encode(checksum).decode(),
                "x-amz-checksum-type": "FULL_OBJECT",
            }
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send((200, data, headers))
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        if s3.cuts.get(path, 0) > 0:
            s3.cuts[path] -= 1
            self._send((206, part, headers), send_only=len(part) // 2)
            self.close_connection = True
            return
        self._send((206, part, headers))

    def _send(self, reply: Reply, send_only: int | None = None) -> None:
        assert isinstance(self.server, _Server)
        status, body, headers = reply
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = memoryview(body)[:send_only]
        rate = self.server.s3.bytes_per_s
        for start in range(0, len(sent), _CHUNK_BYTES):
            chunk = sent[start : start + _CHUNK_BYTES]
            self.wfile.write(chunk)
            if rate is not None:
                time.sleep(len(chunk) / rate)


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def _error(status: int, code: str) -> Reply:
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return status, body.encode(), {"Content-Type": "application/xml"}


def _listing(s3: LoopbackS3, bucket: str, prefix: str) -> Reply:
    entries = "".join(
        f"<Contents><Key>{escape(name.partition('/')[2])}</Key><Size>{len(data)}</Size>"
        f"<ETag>&quot;{_etag(data)}&quot;</ETag></Contents>"
        for name, data in sorted(s3.objects.items())
        if name.startswith(f"{bucket}/{prefix}")
    )
    body = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    return 200, body.encode(), {"Content-Type": "application/xml"}
