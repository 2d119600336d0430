"""What a gateway is configured with."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from core.config import Config
from deployments.groups.group_search import StreamLimits
from deployments.groups.routing import RoutingConfig
from deployments.groups.sleeping import SleepConfig
from deployments.http.api_keys import ApiKey, Sha256Hex, duplicates, nameless_keys
from deployments.live.config import LiveConfig
from deployments.metrics.config import MetricsConfig
from engine.config import Bytes, parse_bytes


class HttpLimits(Config):
    """Bounds on what one HTTP request may ask; everything over them is refused before any work is done."""

    max_body_bytes: Annotated[Bytes, BeforeValidator(parse_bytes)] = 4 * 2**20
    """Longest request body; counted while it is read, whatever Content-Length says."""
    body_timeout_s: float = Field(default=30.0, gt=0, le=600)
    """A body that takes longer to arrive is refused."""
    max_headers: PositiveInt = 100
    """Most header fields of one request."""
    max_header_bytes: Annotated[Bytes, BeforeValidator(parse_bytes)] = 16 * 2**10
    """Most bytes of request line and header fields together."""
    slow_client_s: float = Field(default=30.0, gt=0, le=3600)
    """A client that takes nothing of its stream for so long loses it, and its KV blocks are freed."""
    max_messages: PositiveInt = 2048
    """Most messages of one chat."""
    max_prompts: PositiveInt = 32
    """Most prompts of one /v1/completions request."""
    max_n: PositiveInt = 8
    """Most completions asked for one prompt."""
    max_choices: PositiveInt = 128
    """Most completions of one request: its prompts times `n`."""
    max_stop_strings: PositiveInt = 16
    """Most stop strings of one request; OpenAI allows 4."""
    max_stop_characters: PositiveInt = 256
    """Longest stop string."""
    default_max_tokens: PositiveInt = 4096
    """Most tokens a chat generates when the caller sets no limit, unless the prompt leaves less of the context."""
    request_timeout_s: float = Field(default=600.0, gt=0, le=86400)
    """A request that has not finished by then ends with `deadline_exceeded`."""


class GatewayConfig(Config):
    """One gateway application; it may run in several copies."""

    models: tuple[str, ...] = ()
    """Public model names that must be able to generate before `/readyz` says yes, and the only ones served. Empty: any
    model that announces itself, and ready when one of them is."""
    api_keys: tuple[ApiKey, ...] = ()
    """Who is let in and how far. With no key here or below, everybody is. `/livez` and `/readyz` never need a key."""
    api_keys_file: Path | None = None
    """A YAML file with more `api_keys`, on every machine that runs a gateway; read again when it changes."""
    api_keys_sha256: tuple[Sha256Hex, ...] = ()
    """Keys by nothing but their SHA-256 (hex): without limits, each a tenant of its own."""
    allow_anonymous: bool = False
    """Lets other machines in without keys. For networks in which whoever reaches the port may use the models."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which callers may reach a gateway without keys, besides localhost and addresses; keys allow any."""
    limits: HttpLimits = HttpLimits()
    """Bounds on one HTTP request."""
    routing: RoutingConfig = RoutingConfig()
    """How a replica group is chosen."""
    streams: StreamLimits = StreamLimits()
    """What requests do while no replica group can take them."""
    sleeping: SleepConfig = SleepConfig()
    """Models that may be scaled to zero."""
    tokenizer_threads: PositiveInt = 2
    """Threads that tokenise long prompts, so that they do not hold up running streams."""
    probe_timeout_s: float = Field(default=5.0, gt=0, le=60)
    """How long `/readyz` waits for the token that proves a model can generate."""
    probe_cache_s: float = Field(default=1.0, ge=0, le=60)
    """How long such a proof, or its absence, is good for."""
    metrics: MetricsConfig = MetricsConfig()
    """What Prometheus is shown."""
    live: LiveConfig = LiveConfig()
    """The page at `/` that shows what serves now."""

    @property
    def has_keys(self) -> bool:
        """Whether callers need a key."""
        return bool(self.fixed_keys) or self.api_keys_file is not None

    @property
    def fixed_keys(self) -> list[ApiKey]:
        """Every key that is not in the file."""
        return [*self.api_keys, *nameless_keys(self.api_keys_sha256)]

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        if twice := duplicates(self.fixed_keys):
            raise ValueError(f"API keys {', '.join(twice)}: a name or a sha256 is there twice; keep one of each")
        return self
