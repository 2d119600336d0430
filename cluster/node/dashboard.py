"""The REST API of Ray's dashboard, which answers on the head's loopback address."""

import os
import urllib.error
import urllib.request
from pathlib import Path

from cluster.node.errors import BootFailed, NotYet
from cluster.node.ray_start import DASHBOARD_PORT, TOKEN_PATH_VARIABLE

_LONGEST_WORDS = 600


class Dashboard:
    """Client of one cluster's dashboard; sends the cluster's token."""

    def __init__(
        self, token_path: Path | None, url: str = f"http://127.0.0.1:{DASHBOARD_PORT}", timeout_s: float = 60.0
    ) -> None:
        """`token_path` None: the one that Ray's own variable names, if any."""
        named = os.environ.get(TOKEN_PATH_VARIABLE)
        self._token_path = token_path or (Path(named) if named else None)
        self._url = url
        self._timeout_s = timeout_s
        # No proxy: it is this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> bytes:
        """Return the answer's body. Raises NotYet while there is none, BootFailed for a refusal that will not pass."""
        request = urllib.request.Request(self._url + path, method=method, data=body, headers=self._headers())
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[-_LONGEST_WORDS:]
            if error.code == 400:
                raise BootFailed(f"Ray refuses {method} {path}: {said}") from None
            if error.code in (401, 403):
                raise BootFailed(f"Ray refuses the token in {self._token_path}: {said}; restart the node") from None
            raise NotYet(f"Ray's dashboard answers {error.code}: {said}") from None
        except OSError as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise NotYet(f"Ray's dashboard at {self._url} does not answer ({reason})") from None

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._token_path is not None:
            headers["Authorization"] = f"Bearer {self._token_path.read_text(encoding='ascii').strip()}"
        return headers
