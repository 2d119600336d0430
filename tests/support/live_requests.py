"""Live requests without an engine around them."""

from engine.backlog import Claim
from engine.live_request import LiveRequest
from engine.prefix_cache import BlockHasher
from engine.request import GenerationRequest
from parallel.plan import pack_integers


def make_live(request: GenerationRequest, sink=lambda events: None, *, block_size=8, **changes) -> LiveRequest:
    """A request as intake would make it; due when it arrives."""
    arrival = changes.get("arrival", 0)
    fields = {
        "packed_tokens": pack_integers(request.token_ids),
        "arrival": arrival,
        "due_s": float(arrival),
        "deadline_at_s": None,
        "latest_start_s": None,
        "max_length": request.num_prompt_tokens + request.sampling.max_tokens,
        "stop_ids": frozenset(),
        "hasher": BlockHasher(block_size, request.cache_salt),
        "claim": make_claim(tenant=request.tenant_key, priority=request.priority),
    }
    return LiveRequest(request, sink, **(fields | changes))


def make_claim(tenant="", priority=0, num_uncached_tokens=0, num_output_tokens=0) -> Claim:
    return Claim(tenant, priority, num_uncached_tokens, num_output_tokens, 0.0, None)
