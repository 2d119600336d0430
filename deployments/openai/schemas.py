"""What the OpenAI endpoints accept: strict types (`"3"` and `true` are not 3), the first problem only.

The OpenAI fields, and those that vLLM and Hugging Face servers added and clients send: top_k, min_p,
repetition_penalty, min_tokens, ignore_eos, stop_token_ids, skip_special_tokens, include_stop_str_in_output, priority,
cache_salt, add_special_tokens, parse_special. Ours alone: include_timings.
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest
from deployments.gateway.config import HttpLimits
from deployments.http.errors import UnsupportedContent, UnsupportedParameter
from deployments.http.limits import check_json, decode
from deployments.openai.fields import check_fields

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of the completions endpoint; chats have none."""

_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
"""OpenAI's pattern."""

_PositiveInt = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
_TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How a stream ends."""

    include_usage: bool | None = None
    """One more event with the token counts, before `[DONE]`."""
    include_timings: bool | None = None
    """That event, or one of its own, also says where the time went."""
    include_obfuscation: bool | None = None
    """Ignored: events are not padded."""


class GenerationFields(msgspec.Struct, kw_only=True):
    """What both endpoints share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _PositiveInt | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """-1 and 0 mean all tokens, as vLLM has it."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[_TokenId] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """Lower runs first; added to the priority of the caller's key, so callers can only step back."""
    include_timings: bool | None = None
    """Whether the answer says where its time went; a stream does before `[DONE]`."""
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    """Requests share cached prefixes only with those of the same tenant and the same salt."""

    @property
    def stop_strings(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def num_completions(self) -> int:
        """Completions wanted per prompt."""
        return self.n or 1

    @property
    def has_stream_usage(self) -> bool:
        """Whether the stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def has_timings(self) -> bool:
        """Whether the answer says where its time went."""
        return bool(self.include_timings or (self.stream_options and self.stream_options.include_timings))


class ContentPart(msgspec.Struct):
    """One part of a message; only text is understood."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """One turn of a chat."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw | None = None


class ChatRequest(GenerationFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: _PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate, by either name; None: what the context leaves."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report per token; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None


Prompt = str | list[str | _TokenId | list[_TokenId]]


class CompletionRequest(GenerationFields, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = None
    add_special_tokens: bool | None = None
    """Whether a prompt begins as the tokenizer begins texts, usually with a start token; it does by default."""
    parse_special: bool | None = None
    """Whether a control token spelled in a prompt is one; by default it is text."""
    logprobs: _TopLogprobs | None = None

    @property
    def token_limit(self) -> int:
        """Most tokens to generate."""
        return self.max_tokens or _DEFAULT_COMPLETION_TOKENS

    def prompts(self) -> list[str | list[int]]:
        """Return one text or token id list per prompt. Raises InvalidRequest for a mixed list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [item for item in self.prompt if isinstance(item, str)]
        id_lists = [item for item in self.prompt if isinstance(item, list)]
        ids = [item for item in self.prompt if isinstance(item, int)]
        if len(self.prompt) not in (len(texts), len(id_lists), len(ids)):
            raise InvalidRequest("prompt mixes texts, token ids and lists of them; use one kind", param="prompt")
        return [ids] if ids else [*texts, *id_lists]


_CHAT = msgspec.json.Decoder(ChatRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)


def parse_chat(body: bytes, limits: HttpLimits) -> ChatRequest:
    """Return the checked request. Raises RequestError with the parameter at fault."""
    check_json(body)
    check_fields(body, ChatRequest.__struct_fields__)
    request = decode(_CHAT, body)
    _check_shared(request, limits)
    _check_count("messages", len(request.messages), limits.max_messages, minimum=1)
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]")
    if request.max_tokens and request.max_completion_tokens and request.max_tokens != request.max_completion_tokens:
        raise InvalidRequest("max_tokens and max_completion_tokens differ; send only the latter", param="max_tokens")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs=true", param="top_logprobs")
    return request


def parse_completion(body: bytes, limits: HttpLimits) -> CompletionRequest:
    """Return the checked request. Raises RequestError with the parameter at fault."""
    check_json(body)
    check_fields(body, CompletionRequest.__struct_fields__)
    request = decode(_COMPLETION, body)
    _check_shared(request, limits)
    num_prompts = len(request.prompts())
    _check_count("prompt", num_prompts, limits.max_prompts, minimum=1)
    _check_count("n", request.num_completions, max(1, limits.max_choices // num_prompts))
    if request.echo and request.logprobs is not None:
        raise UnsupportedParameter("logprobs of the prompt are not supported; use echo or logprobs", param="echo")
    return request


def _check_shared(request: GenerationFields, limits: HttpLimits) -> None:
    _check_count("n", request.num_completions, limits.max_n)
    _check_count("stop", len(request.stop_strings), limits.max_stop_strings)
    for stop in request.stop_strings:
        if not 1 <= len(stop) <= limits.max_stop_characters:
            raise InvalidRequest(
                f"a stop string has {len(stop)} characters; use 1 to {limits.max_stop_characters}", param="stop"
            )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options is only allowed with stream=true", param="stream_options")


def _check_count(name: str, count: int, maximum: int, minimum: int = 0) -> None:
    if not minimum <= count <= maximum:
        raise InvalidRequest(f"{name}: {count} is out of range; use {minimum} to {maximum}", param=name)


def _check_message(message: ChatMessage, where: str) -> None:
    if message.role not in _ROLES:
        raise InvalidRequest(f"{where}.role is none of {', '.join(_ROLES)}", param=f"{where}.role")
    if message.name is not None and not _NAME.fullmatch(message.name):
        raise InvalidRequest(f"{where}.name is not 1 to 64 characters without spaces and <|\\/>", param=f"{where}.name")
    if message.tool_calls or message.function_call or message.role in ("tool", "function"):
        raise UnsupportedParameter(f"{where} belongs to a tool call, which is not supported yet", param=where)
    if message.content is None:
        raise InvalidRequest(f"{where} has no content; send a text", param=f"{where}.content")
    if isinstance(message.content, str):
        return
    for index, part in enumerate(message.content):
        name = f"{where}.content[{index}]"
        if part.type != "text":
            raise UnsupportedContent(f"{name} is not text; this model reads text only", param=name)
        if part.text is None:
            raise InvalidRequest(f"{name} has no text", param=f"{name}.text")
