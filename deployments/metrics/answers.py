"""HTTP answers and refusals, counted at the ingress boundary: those without a key never get any further."""

from core.errors import EaglerayError, StartupError
from deployments.http.boundary import CLIENT_LEFT
from deployments.http.errors import SlowClient
from deployments.metrics import gateway_rows as rows
from deployments.metrics.row import OTHER
from deployments.metrics.store import Numbers
from deployments.openai.errors import status_of

_SLOW_CLIENT = SlowClient.code

_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/livez", "/readyz", "/metrics", "/"})
_FOLDERS = {"/v1/models/": "/v1/models/{name}", "/live/": "/live/*"}


def route_of(path: str) -> str:
    """Return what a path is counted under: callers can make up paths, but no labels."""
    if path in _ROUTES:
        return path
    return next((route for folder, route in _FOLDERS.items() if path.startswith(folder)), OTHER)


def codes() -> dict[str, str]:
    """Return every code that an answer can have, with its HTTP status."""
    waiting: list[type[EaglerayError]] = [EaglerayError]
    found: dict[str, str] = {}
    while waiting:
        kind = waiting.pop()
        if not issubclass(kind, StartupError):
            found.setdefault(kind.code, str(status_of(kind(""))))
            waiting += kind.__subclasses__()
    return found


class AnswerMetrics:
    """Counts every HTTP exchange of a gateway when it is over."""

    def __init__(self) -> None:
        self.responses = Numbers.bounded(rows.RESPONSES)
        self.refusals = Numbers.bounded(rows.REFUSALS)
        self.client_disconnects = Numbers.bounded(rows.CLIENT_DISCONNECTS)
        self._status_of_code = codes()
        self.refusals.show(self._status_of_code.items())
        self.client_disconnects.show([("left",), ("slow",)])
        self.responses.show([("/v1/chat/completions", "200"), ("/v1/completions", "200")])

    def note(self, path: str, status: int, error_code: str | None) -> None:
        """Count an exchange; `error_code`: what ended it, `client_left` among them."""
        self.responses.add(route_of(path), str(status))
        if error_code == CLIENT_LEFT:
            self.client_disconnects.add("left")
        elif error_code == _SLOW_CLIENT:
            self.client_disconnects.add("slow")
        elif error_code is not None:
            self.refusals.add(error_code, self._status_of_code.get(error_code, "500"))

    def all_numbers(self) -> list[Numbers]:
        """Return every counter."""
        return [self.responses, self.refusals, self.client_disconnects]
