"""From an OpenAI request to what the engine samples by."""

import secrets
from collections.abc import Mapping

from core.errors import ContextTooLong, InvalidRequest
from deployments.gateway.model_catalog import GatewayModel
from deployments.openai.schemas import GenerationFields
from parallel.sampling.params import SamplingParams

_SEED_MASK = 2**63 - 1
_SEED_STRIDE = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: spreads consecutive choices over the whole range."""


def sampling_params(
    fields: GenerationFields, model: GatewayModel, max_tokens: int, num_logprobs: int | None
) -> SamplingParams:
    """Return the parameters of the first choice; draws a seed if the caller gave none. Raises InvalidRequest."""
    _check_token_ids("stop_token_ids", fields.stop_token_ids or [], model)
    return SamplingParams(
        max_tokens=max_tokens,
        seed=secrets.randbits(63) if fields.seed is None else fields.seed & _SEED_MASK,
        min_tokens=fields.min_tokens or 0,
        temperature=_default(fields.temperature, 1.0),
        top_k=fields.top_k if fields.top_k is not None and fields.top_k > 0 else None,
        top_p=_default(fields.top_p, 1.0),
        min_p=_default(fields.min_p, 0.0),
        presence_penalty=_default(fields.presence_penalty, 0.0),
        frequency_penalty=_default(fields.frequency_penalty, 0.0),
        repetition_penalty=_default(fields.repetition_penalty, 1.0),
        logit_bias=_logit_bias(fields.logit_bias or {}, model),
        logprobs=num_logprobs,
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
    )


def seed_of_choice(seed: int, index: int) -> int:
    """Return the seed of one of several choices; the first one has the request's own."""
    return (seed + index * _SEED_STRIDE) & _SEED_MASK


def token_budget(model: GatewayModel, num_prompt_tokens: int, wanted: int | None, default: int) -> int:
    """Return max_tokens: what is wanted, or what the context leaves up to `default`.

    Raises ContextTooLong in OpenAI's words, which clients match to compact a chat.
    """
    left = model.max_model_len - num_prompt_tokens
    if left < (wanted or 1):
        raise ContextTooLong(
            f"This model's maximum context length is {model.max_model_len} tokens. However, you requested "
            f"{num_prompt_tokens + (wanted or 1)} tokens ({num_prompt_tokens} in the prompt, {wanted or 1} in the "
            "completion). Please reduce the length of the prompt or completion."
        )
    return wanted or min(left, default)


def check_prompt_ids(token_ids: list[int], model: GatewayModel) -> None:
    """Raise InvalidRequest unless there are tokens and all are in the vocabulary."""
    if not token_ids:
        raise InvalidRequest("the prompt has no tokens; send some text", param="prompt")
    _check_token_ids("prompt", token_ids, model)


def _check_token_ids(name: str, token_ids: list[int], model: GatewayModel) -> None:
    largest = max(token_ids, default=0)
    if largest >= model.tokenizer.vocab_size:
        raise InvalidRequest(
            f"{name}: token id {largest} is not in the vocabulary; use 0 to {model.tokenizer.vocab_size - 1}",
            param=name,
        )


def _logit_bias(bias: Mapping[str, float], model: GatewayModel) -> dict[int, float]:
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise InvalidRequest("logit_bias: a key is not a token id; use decimal numbers", param="logit_bias")
    _check_token_ids("logit_bias", [int(key) for key in bias], model)
    return {int(key): value for key, value in bias.items()}


def _default(value: float | None, default: float) -> float:
    return default if value is None else value
