"""One parsed request on its way: its choices and how its answer is written. Both endpoints make these."""

import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from deployments.gateway.config import HttpLimits
from deployments.gateway.generation import Choice, Delta
from deployments.gateway.model_catalog import GatewayModel, ModelCatalog, unknown_model
from deployments.http.caller import Caller
from deployments.openai.responses import Closing, CollectedChoice, ResponseMeta, Usage
from deployments.openai.sampling import check_prompt_ids, sampling_params, seed_of_choice, token_budget
from deployments.openai.schemas import GenerationFields
from deployments.openai.timings import Timings
from engine.request import GenerationRequest
from engine.text import TextStream


class ResponseWriter(Protocol):
    """An endpoint's wire format, bound to one answer."""

    def opening(self) -> bytes:
        """Return the events a stream opens with."""
        ...

    def event(self, delta: Delta) -> bytes:
        """Return the event, or events, for a delta."""
        ...

    def closing_event(self, closing: Closing) -> bytes:
        """Return the event with the token counts, the timings, or both."""
        ...

    def whole(self, choices: Sequence[CollectedChoice], usage: Usage, timings: Timings | None) -> bytes:
        """Return the body of an answer that is not streamed."""
        ...


class Job(NamedTuple):
    """What the endpoint runs."""

    response_id: str
    model: str
    fields: GenerationFields
    choices: list[Choice]
    writer: ResponseWriter

    @property
    def usage(self) -> Usage:
        """Token counts; final when all choices have run."""
        return Usage.of(self.choices, self.fields.num_completions)

    @property
    def max_total_tokens(self) -> int:
        """Tokens of every prompt, once, and most tokens of every choice."""
        prompts = self.choices[:: self.fields.num_completions]
        return sum(choice.num_prompt_tokens for choice in prompts) + sum(choice.max_tokens for choice in self.choices)

    @property
    def num_computed_tokens(self) -> int:
        """Those of them that were computed so far; prompts count if anything came of any."""
        has_begun = any(choice.first_token_at_s is not None for choice in self.choices)
        return self.usage.total_tokens if has_begun else 0


def new_meta(prefix: str, model: GatewayModel) -> ResponseMeta:
    """Return a fresh response id, `created` and the model's name."""
    return ResponseMeta(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model.name)


async def awake_model(name: str, caller: Caller, catalog: ModelCatalog) -> GatewayModel:
    """Return a model that exists for the caller, once it runs if it was asleep. Raises ModelNotFound, NotReady."""
    if caller.sees(name):
        await catalog.wake(name)
    return visible_model(name, caller, catalog)


def visible_model(name: str, caller: Caller, catalog: ModelCatalog) -> GatewayModel:
    """Return a model that exists for the caller. Raises ModelNotFound, NotReady."""
    if not caller.sees(name):
        raise unknown_model(name)
    return catalog.get(name)


def build_choices(
    fields: GenerationFields,
    caller: Caller,
    model: GatewayModel,
    prompts: Sequence[list[int]],
    response_id: str,
    limits: HttpLimits,
    token_limit: int | None,
    num_logprobs: int | None,
) -> list[Choice]:
    """Return the choices of all prompts, `n` neighbours to a prompt. Raises RequestError before anything is sent."""
    choices: list[Choice] = []
    for token_ids in prompts:
        check_prompt_ids(token_ids, model)
        max_tokens = token_budget(model, len(token_ids), token_limit, limits.default_max_tokens)
        sampling = sampling_params(fields, model, max_tokens, num_logprobs)
        for _ in range(fields.num_completions):
            index = len(choices)
            request = GenerationRequest(
                request_id=f"{response_id}-{index}",
                token_ids=token_ids,
                num_prompt_tokens=len(token_ids),
                sampling=msgspec.structs.replace(sampling, seed=seed_of_choice(sampling.seed, index)),
                priority=caller.priority + (fields.priority or 0),
                deadline_s=limits.request_timeout_s,
                cache_salt=caller.cache_salt(fields.cache_salt),
                tenant=caller.fair_share,
            )
            choices.append(Choice(index, model.name, request, _text_stream(fields, model, token_ids)))
    return choices


def _text_stream(fields: GenerationFields, model: GatewayModel, token_ids: Sequence[int]) -> TextStream:
    return TextStream(
        model.tokenizer,
        token_ids,
        fields.stop_strings,
        include_stop=bool(fields.include_stop_str_in_output),
        skip_special_tokens=fields.skip_special_tokens is not False,
        min_tokens=fields.min_tokens or 0,
    )
