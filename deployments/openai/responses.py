"""What the OpenAI endpoints answer, apart from the events of a stream."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from deployments.gateway.generation import Choice, ChoiceEnd, ChoiceToken, Delta
from deployments.openai.timings import Timings


class ResponseMeta(NamedTuple):
    """What every part of one answer repeats."""

    id: str
    created: int
    model: str


class PromptTokensDetails(msgspec.Struct):
    """Where prompt tokens came from."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Token counts of a request; a prompt counts once, however many completions it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, choices: Iterable[Choice], num_completions: int) -> "Usage":
        """Return the counts of finished choices, `num_completions` neighbours to a prompt."""
        every = list(choices)
        first_of_prompt = every[::num_completions]
        num_prompt_tokens = sum(choice.num_prompt_tokens for choice in first_of_prompt)
        num_tokens = sum(choice.num_tokens for choice in every)
        cached = PromptTokensDetails(sum(choice.num_cached_tokens for choice in first_of_prompt))
        return cls(num_prompt_tokens, num_tokens, num_prompt_tokens + num_tokens, cached)


class Closing(msgspec.Struct):
    """What the last event of a stream has, as far as it was asked for."""

    usage: Usage | msgspec.UnsetType = msgspec.UNSET
    timings: Timings | msgspec.UnsetType = msgspec.UNSET


class CollectedChoice:
    """The deltas of one choice, kept until all have come."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.tokens: list[ChoiceToken] = []
        self.finish_reason: ChoiceEnd = "stop"

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._texts)

    def add(self, delta: Delta) -> None:
        """Append what an event added."""
        self._texts.append(delta.text)
        self.tokens.extend(delta.tokens)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason


class ModelCard(msgspec.Struct):
    """One entry of /v1/models."""

    id: str
    created: int
    max_model_len: int
    """Longest prompt and completion together; agents read it."""
    object: Literal["model"] = "model"
    owned_by: str = "eagleray"


class ModelList(msgspec.Struct):
    """GET /v1/models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"
