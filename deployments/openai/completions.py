"""POST /v1/completions."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from deployments.gateway.config import HttpLimits
from deployments.gateway.generation import ChoiceEnd, Delta
from deployments.gateway.model_catalog import GatewayModel, ModelCatalog, ModelTokenizer
from deployments.http.caller import Caller
from deployments.openai.job import Job, awake_model, build_choices, new_meta
from deployments.openai.logprobs import CompletionLogprobs, completion_logprobs
from deployments.openai.responses import Closing, CollectedChoice, ResponseMeta, Usage
from deployments.openai.schemas import CompletionRequest, parse_completion
from deployments.openai.sse import json_text, json_value
from deployments.openai.timings import Timings


class CompletionChoice(msgspec.Struct):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: ChoiceEnd


class Completion(msgspec.Struct):
    """The whole answer."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    object: Literal["text_completion"] = "text_completion"
    timings: Timings | msgspec.UnsetType = msgspec.UNSET


class CompletionWriter:
    """Events and bodies of one completions answer. `echoes`: each choice's prompt, or empty texts."""

    def __init__(
        self, meta: ResponseMeta, request: CompletionRequest, echoes: Sequence[str], tokenizer: ModelTokenizer
    ) -> None:
        self._meta = meta
        self._tokenizer = tokenizer
        self._echoes = echoes
        self._has_logprobs = request.logprobs is not None
        self._head = b'data: {"id":%b,"object":"text_completion","created":%d,"model":%b,"choices":[' % (
            json_text(meta.id),
            meta.created,
            json_text(meta.model),
        )
        self._tail = b',"usage":null}\n\n' if request.has_stream_usage else b"}\n\n"
        self._before_text = [self._head + b'{"index":%d,"text":' % index for index in range(len(echoes))]
        self._after_text = b',"logprobs":null,"finish_reason":null}]' + self._tail

    def opening(self) -> bytes:
        """Return the echoed prompts."""
        return b"".join(self.event(Delta(index, echo, (), None)) for index, echo in enumerate(self._echoes) if echo)

    def event(self, delta: Delta) -> bytes:
        """Return one event."""
        before, text = self._before_text[delta.choice], json_text(delta.text)
        if delta.finish_reason is None and not delta.tokens:
            return before + text + self._after_text
        logprobs = b"null"
        if delta.tokens:
            logprobs = json_value(completion_logprobs(delta.tokens, self._tokenizer))
        reason = json_value(delta.finish_reason)
        return b'%b%b,"logprobs":%b,"finish_reason":%b}]%b' % (before, text, logprobs, reason, self._tail)

    def closing_event(self, closing: Closing) -> bytes:
        """Return the event without choices."""
        return self._head + b"]," + json_value(closing)[1:] + b"\n\n"

    def whole(self, choices: Sequence[CollectedChoice], usage: Usage, timings: Timings | None) -> bytes:
        """Return a text_completion."""
        answers = [
            CompletionChoice(
                index,
                echo + choice.text,
                completion_logprobs(choice.tokens, self._tokenizer) if self._has_logprobs else None,
                choice.finish_reason,
            )
            for index, (echo, choice) in enumerate(zip(self._echoes, choices, strict=True))
        ]
        meta = self._meta
        shown = msgspec.UNSET if timings is None else timings
        return json_value(Completion(meta.id, meta.created, meta.model, answers, usage, timings=shown))


async def prepare_completion(body: bytes, caller: Caller, catalog: ModelCatalog, limits: HttpLimits) -> Job:
    """Return what is to be run. Raises RequestError, NotReady."""
    request = parse_completion(body, limits)
    model = await awake_model(request.model, caller, catalog)
    prompts = [await _token_ids(request, prompt, model) for prompt in request.prompts()]
    meta = new_meta("cmpl", model)
    choices = build_choices(request, caller, model, prompts, meta.id, limits, request.token_limit, request.logprobs)
    echoes = [_echo(request, prompt, model) for prompt in request.prompts() for _ in range(request.num_completions)]
    return Job(meta.id, model.name, request, choices, CompletionWriter(meta, request, echoes, model.tokenizer))


async def _token_ids(request: CompletionRequest, prompt: str | list[int], model: GatewayModel) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    begins_as_usual = request.add_special_tokens is not False
    return await model.encode(prompt, add_special_tokens=begins_as_usual, parse_special=bool(request.parse_special))


def _echo(request: CompletionRequest, prompt: str | list[int], model: GatewayModel) -> str:
    if not request.echo:
        return ""
    return prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt, skip_special_tokens=True)
