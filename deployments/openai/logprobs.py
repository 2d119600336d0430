"""Log probabilities in the two wire formats OpenAI has for them."""

from collections.abc import Sequence

import msgspec

from deployments.gateway.generation import ChoiceToken
from deployments.gateway.model_catalog import ModelTokenizer

_MIN_LOGPROB = -9999.0
"""JSON has no -Infinity; this is what clients of vLLM know for it."""


class TopLogprob(msgspec.Struct):
    """A token that might have been chosen."""

    token: str
    logprob: float
    bytes: list[int]
    """Exact even where `token` shows U+FFFD for a part of a character."""


class ChatTokenLogprob(msgspec.Struct):
    """A chosen token and the most likely ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """`choices[].logprobs` of a chat."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    """`choices[].logprobs` of a completion: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(tokens: Sequence[ChoiceToken], tokenizer: ModelTokenizer) -> ChatLogprobs:
    """Return the chat format."""
    content: list[ChatTokenLogprob] = []
    for token in tokens:
        chosen = _top(token.token_id, token.logprobs.logprob, tokenizer)
        alternatives = zip(token.logprobs.top_ids, token.logprobs.top_logprobs, strict=True)
        top = [_top(token_id, logprob, tokenizer) for token_id, logprob in alternatives]
        content.append(ChatTokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top))
    return ChatLogprobs(content)


def completion_logprobs(tokens: Sequence[ChoiceToken], tokenizer: ModelTokenizer) -> CompletionLogprobs:
    """Return the completions format."""
    result = CompletionLogprobs([], [], [], [])
    for token in tokens:
        text, logprob = _text(token.token_id, tokenizer), max(token.logprobs.logprob, _MIN_LOGPROB)
        alternatives = zip(token.logprobs.top_ids, token.logprobs.top_logprobs, strict=True)
        top = {_text(token_id, tokenizer): max(top_logprob, _MIN_LOGPROB) for token_id, top_logprob in alternatives}
        result.tokens.append(text)
        result.token_logprobs.append(logprob)
        result.top_logprobs.append({**top, text: logprob})
        result.text_offset.append(token.text_offset)
    return result


def _top(token_id: int, logprob: float, tokenizer: ModelTokenizer) -> TopLogprob:
    raw = tokenizer.token_bytes(token_id)
    return TopLogprob(raw.decode("utf-8", "replace"), max(logprob, _MIN_LOGPROB), list(raw))


def _text(token_id: int, tokenizer: ModelTokenizer) -> str:
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")
