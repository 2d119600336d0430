"""POST /v1/chat/completions."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from deployments.gateway.config import HttpLimits
from deployments.gateway.generation import ChoiceEnd, Delta
from deployments.gateway.model_catalog import ModelCatalog, ModelTokenizer
from deployments.http.caller import Caller
from deployments.openai.job import Job, awake_model, build_choices, new_meta
from deployments.openai.logprobs import ChatLogprobs, chat_logprobs
from deployments.openai.responses import Closing, CollectedChoice, ResponseMeta, Usage
from deployments.openai.schemas import ChatMessage, ChatRequest, parse_chat
from deployments.openai.sse import json_text, json_value
from deployments.openai.timings import Timings


class AnswerMessage(msgspec.Struct):
    """The assistant's turn."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One completion."""

    index: int
    message: AnswerMessage
    finish_reason: ChoiceEnd
    logprobs: ChatLogprobs | None


class ChatCompletion(msgspec.Struct):
    """The whole answer."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    timings: Timings | msgspec.UnsetType = msgspec.UNSET


class ChatWriter:
    """Events and bodies of one chat answer."""

    def __init__(self, meta: ResponseMeta, request: ChatRequest, tokenizer: ModelTokenizer) -> None:
        self._meta = meta
        self._tokenizer = tokenizer
        self._has_logprobs = request.num_logprobs is not None
        self._head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            json_text(meta.id),
            meta.created,
            json_text(meta.model),
        )
        # With include_usage every event but the last has a null in its place.
        self._tail = b',"usage":null}\n\n' if request.has_stream_usage else b"}\n\n"
        self._before_text = [
            self._head + b'{"index":%d,"delta":{"content":' % index for index in range(request.num_completions)
        ]
        self._after_text = b'},"logprobs":null,"finish_reason":null}]' + self._tail

    def opening(self) -> bytes:
        """Return each choice's role."""
        return b"".join(before + b'"","role":"assistant"' + self._after_text for before in self._before_text)

    def event(self, delta: Delta) -> bytes:
        """Return the text's event, then the finish reason's."""
        before, text = self._before_text[delta.choice], json_text(delta.text)
        if delta.tokens:
            logprobs = json_value(chat_logprobs(delta.tokens, self._tokenizer))
            events = b'%b%b},"logprobs":%b,"finish_reason":null}]%b' % (before, text, logprobs, self._tail)
        elif delta.text:
            events = before + text + self._after_text
        else:
            events = b""
        return events if delta.finish_reason is None else events + self._finish(delta.choice, delta.finish_reason)

    def closing_event(self, closing: Closing) -> bytes:
        """Return the event without choices."""
        return self._head + b"]," + json_value(closing)[1:] + b"\n\n"

    def whole(self, choices: Sequence[CollectedChoice], usage: Usage, timings: Timings | None) -> bytes:
        """Return a chat.completion."""
        answers = [
            ChatChoice(
                index,
                AnswerMessage(choice.text),
                choice.finish_reason,
                chat_logprobs(choice.tokens, self._tokenizer) if self._has_logprobs else None,
            )
            for index, choice in enumerate(choices)
        ]
        meta = self._meta
        shown = msgspec.UNSET if timings is None else timings
        return json_value(ChatCompletion(meta.id, meta.created, meta.model, answers, usage, timings=shown))

    def _finish(self, index: int, reason: ChoiceEnd) -> bytes:
        choice = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}]' % (index, reason.encode())
        return self._head + choice + self._tail


async def prepare_chat(body: bytes, caller: Caller, catalog: ModelCatalog, limits: HttpLimits) -> Job:
    """Return what is to be run. Raises RequestError, NotReady."""
    request = parse_chat(body, limits)
    model = await awake_model(request.model, caller, catalog)
    token_ids = await model.chat([_plain(message) for message in request.messages])
    meta = new_meta("chatcmpl", model)
    choices = build_choices(
        request, caller, model, [token_ids], meta.id, limits, request.token_limit, request.num_logprobs
    )
    return Job(meta.id, model.name, request, choices, ChatWriter(meta, request, model.tokenizer))


def _plain(message: ChatMessage) -> dict[str, str]:
    """Return the message as chat templates know it: text content, `system` for `developer`."""
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text or "" for part in content)
    plain = {"role": "system" if message.role == "developer" else message.role, "content": content or ""}
    return plain if message.name is None else {**plain, "name": message.name}
