"""The gateway: HTTP on one side, replica groups on the other. Stateless but for what the groups announce."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.status import GroupStatus
from cluster.weights.config import WeightsConfig
from cluster.weights.model_files import ModelFiles
from core.clock import Clock, MonotonicClock
from deployments.gateway.config import GatewayConfig
from deployments.gateway.model_catalog import GatewayModel, LoadTokenizer, ModelCatalog, ModelTokenizer
from deployments.gateway.readiness import Readiness
from deployments.groups.directory import GroupDirectory
from deployments.groups.sleeping import StartApplication, cannot_start
from deployments.groups.unbroken import UnbrokenStreams
from deployments.http.auth import ApiKeyGuard
from deployments.http.boundary import IngressBoundary
from deployments.http.caller import caller_of
from deployments.http.errors import MethodNotAllowed, RouteNotFound
from deployments.http.head import HeadGuard
from deployments.http.key_ring import KeyRing
from deployments.live.page import LivePage
from deployments.metrics.copies import AskCopies, CopyPage, ask_nobody
from deployments.metrics.exposition import CONTENT_TYPE
from deployments.metrics.gateway_metrics import GatewayFacts, GatewayMetrics
from deployments.metrics.group_families import Group
from deployments.openai.chat import prepare_chat
from deployments.openai.completions import prepare_completion
from deployments.openai.endpoint import GatewayServices, GenerationEndpoint
from deployments.openai.errors import error_response
from deployments.openai.job import visible_model
from deployments.openai.responses import ModelCard, ModelList
from deployments.tracing.request_trail import RequestTrails
from engine.tokenizer import Tokenizer


def load_tokenizer(source: str, revision: str | None) -> ModelTokenizer:
    """Return a model's tokenizer, fetching its files if need be; blocks. Raises StartupError."""
    files = ModelFiles(WeightsConfig())
    try:
        return Tokenizer.load(files.locate_tokenizer(source, revision))
    finally:
        files.close()


class GatewayApp(Starlette):
    """Starlette with a short cut: it wraps `send` twice around every handler, which each streamed token would pay for.

    POSTs to the paths in `direct` go to those apps at once; all else, and other methods, takes the usual way.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.direct: dict[str, ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's life."""
        app = None
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            app = self.direct.get(scope["path"])
        await (app or super().__call__)(scope, receive, send)


class Gateway:
    """One gateway process. Every method is called on its event loop."""

    def __init__(
        self,
        config: GatewayConfig,
        directory: GroupDirectory | None = None,
        load: LoadTokenizer = load_tokenizer,
        clock: Clock | None = None,
        start: StartApplication = cannot_start,
        trails: RequestTrails | None = None,
        name: str = "gateway",
        ask_copies: AskCopies = ask_nobody,
    ) -> None:
        """`start` is asked for the first replica of a model that was scaled to zero; `trails` may trace requests.

        `name` tells this copy from others in metrics, which `ask_copies` has the others tell.
        """
        self._config = config
        self._directory = (
            directory if directory is not None else GroupDirectory(config.models or None, routing=config.routing)
        )
        self._catalog = ModelCatalog(
            self._directory, load, config.models, config.tokenizer_threads, config.sleeping, start
        )
        clock = clock or MonotonicClock()
        self._trails = trails or RequestTrails()
        self._keys = KeyRing(config.fixed_keys, config.api_keys_file, clock)
        self._readiness = Readiness(config, self._directory, self._catalog, clock)
        self._streams = UnbrokenStreams(self._directory, config.streams)
        facts = GatewayFacts(
            self._groups, self._streams, self._directory.decisions, config.routing.policy, config.models
        )
        self._metrics = GatewayMetrics(config.metrics, facts, name, ask_copies)
        self._live = _live_page(config, self._directory, self._streams, clock)

    def announce(self, status: GroupStatus) -> None:
        """Take what a replica group says about itself."""
        self._directory.start()
        self._directory.announce(status)
        self._catalog.refresh()
        if self._live is not None:
            self._live.start()

    def metrics_page(self) -> CopyPage:
        """Return what this copy has to show, for another one that is asked for all."""
        return self._metrics.own_page()

    def asgi_app(self) -> ASGIApp:
        """Return the HTTP application."""
        services = GatewayServices(
            self._config.limits,
            self._streams,
            self._catalog,
            self._readiness,
            self._metrics,
            self._trails,
            self._live,
        )
        chat = GenerationEndpoint("chat", prepare_chat, services)
        completions = GenerationEndpoint("text_completion", prepare_completion, services)
        routes = [
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", self._list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._show_model, methods=["GET"]),
            Route("/livez", _alive, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/metrics", self._render_metrics, methods=["GET"]),
            *(self._live.routes() if self._live is not None else ()),
        ]
        app = GatewayApp(
            routes=routes,
            middleware=[Middleware(self._front)],
            exception_handlers={HTTPException: _routing_error},
            lifespan=self._lifespan,
        )
        for path, endpoint in (("/v1/chat/completions", chat), ("/v1/completions", completions)):
            app.direct[path] = self._front(endpoint)
        # A redirect would drop the body of a POST in some clients; an unknown path says so instead.
        app.router.redirect_slashes = False
        return app

    async def close(self) -> None:
        """Stop probing and loading, and close every channel; open streams end in ReplicaFailed. Idempotent."""
        if self._live is not None:
            await self._live.close()
        await self._readiness.close()
        await self._catalog.close()
        self._streams.close()
        await self._directory.close()

    def _front(self, app: ASGIApp) -> ASGIApp:
        """Return `app` behind everything that every request goes through."""
        hosts = None if self._keys.is_locked else self._config.allowed_hosts
        open_paths = self._live.open_paths if self._live is not None else ()
        guarded = HeadGuard(ApiKeyGuard(app, self._keys, open_paths), self._config.limits, hosts)
        return IngressBoundary(guarded, self._metrics.answers.note)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.close()

    async def _list_models(self, request: Request) -> Response:
        caller = caller_of(request.scope)
        return _json(ModelList([_card(model) for model in self._catalog.list() if caller.sees(model.name)]))

    async def _show_model(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        return _json(_card(visible_model(name, caller_of(request.scope), self._catalog)))

    async def _ready(self, request: Request) -> Response:
        report = await self._readiness.report()
        return _json(report, 200 if report.is_ready else 503)

    async def _render_metrics(self, request: Request) -> Response:
        return Response(await self._metrics.render(), media_type=CONTENT_TYPE)

    def _groups(self) -> Iterable[Group]:
        loads = self._directory.loads()
        return [Group(status, loads.get(status.group_id)) for status in self._directory.statuses()]


def _live_page(
    config: GatewayConfig, directory: GroupDirectory, streams: UnbrokenStreams, clock: Clock
) -> LivePage | None:
    return LivePage(config.live, directory, streams, config.models, clock) if config.live.enabled else None


async def _alive(request: Request) -> Response:
    return Response(b'{"status":"alive"}', media_type="application/json")


async def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    shown = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return error_response(
            MethodNotAllowed(f"method not allowed: {shown}; use {allowed}"), headers={"allow": allowed}
        )
    return error_response(RouteNotFound(f"no such route: {shown}; the API is under /v1"))


def _card(model: GatewayModel) -> ModelCard:
    return ModelCard(model.name, model.created, model.max_model_len)


def _json(value: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
