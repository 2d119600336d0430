"""What a gateway is configured with."""

from typing import Annotated

from pydantic import BeforeValidator, Field, PositiveInt, StringConstraints

from core.config import Config
from deployments.groups.group_search import StreamLimits
from engine.config import Bytes, parse_bytes

Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class HttpLimits(Config):
    """Bounds on what one HTTP request may ask; everything over them is refused before any work is done."""

    max_body_bytes: Annotated[Bytes, BeforeValidator(parse_bytes)] = 4 * 2**20
    """Longest request body; counted while it is read, whatever Content-Length says."""
    body_timeout_s: float = Field(default=30.0, gt=0, le=600)
    """A body that takes longer to arrive is refused."""
    max_messages: PositiveInt = 2048
    """Most messages of one chat."""
    max_prompts: PositiveInt = 32
    """Most prompts of one /v1/completions request."""
    max_n: PositiveInt = 8
    """Most completions asked for one prompt."""
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
    api_keys_sha256: tuple[Sha256Hex, ...] = ()
    """SHA-256 (hex) of each API key; with none, every caller is let in. `/livez` and `/readyz` never need a key."""
    limits: HttpLimits = HttpLimits()
    """Bounds on one HTTP request."""
    streams: StreamLimits = StreamLimits()
    """What requests do while no replica group can take them."""
    tokenizer_threads: PositiveInt = 2
    """Threads that tokenise long prompts, so that they do not hold up running streams."""
    probe_timeout_s: float = Field(default=5.0, gt=0, le=60)
    """How long `/readyz` waits for the token that proves a model can generate."""
    probe_cache_s: float = Field(default=1.0, ge=0, le=60)
    """How long such a proof, or its absence, is good for."""
