"""How one request's tokens are chosen. No torch here: leaders and gateways build these too."""

from typing import Annotated

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest

MAX_LOGPROBS = 20
"""Most alternatives reported per token; OpenAI's limit."""
MAX_TOP_K = 2**31 - 1
"""Any vocabulary is smaller; a rank's arrays hold no number that is much larger."""
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Validated on construction and again when decoded from a frame. Raises InvalidRequest naming the field."""

    max_tokens: int
    """Most tokens to generate, counted from the end of the prompt."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    """Key of the counter-based random numbers; the gateway draws one when the caller gives none."""
    min_tokens: int = 0
    """End-of-sequence and stop token ids are masked until this many tokens were generated."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output (CTRL, arXiv 1909.05858, 4.1)."""
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    """None: none. n: the chosen token's and the n most likely alternatives', before penalties and temperature."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "use 1 or more")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "use 0 to max_tokens")
        _require(0 <= self.temperature <= 100, "temperature", self.temperature, "use 0 to 100")
        is_ok = self.top_k is None or 1 <= self.top_k <= MAX_TOP_K
        _require(is_ok, "top_k", self.top_k, f"use 1 to {MAX_TOP_K}, or leave it out")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "use more than 0, at most 1")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "use 0 to 1")
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", self.presence_penalty, "use -2 to 2")
        _require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", self.frequency_penalty, "use -2 to 2")
        _require(0 < self.repetition_penalty <= 100, "repetition_penalty", self.repetition_penalty, "use 0 to 100")
        _require(self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", self.logprobs, "use 0 to 20")
        _require(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            "stop_token_ids",
            len(self.stop_token_ids),
            "use at most 128",
        )
        _require(len(self.logit_bias) <= MAX_LOGIT_BIAS, "logit_bias", len(self.logit_bias), "use at most 1024 entries")
        for bias in self.logit_bias.values():
            _require(-100 <= bias <= 100, "logit_bias", bias, "use -100 to 100")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """Whether tokens already in the text change the logits."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


def _require(is_ok: bool, name: str, value: object, advice: str) -> None:
    # A NaN compares false with everything, so it lands here too.
    if not is_ok:
        raise InvalidRequest(f"{name}={value!r} is out of range; {advice}", param=name)
