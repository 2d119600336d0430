"""What a step of this model copy costs, in four numbers a router can predict with."""

import msgspec


class StepCosts(msgspec.Struct, frozen=True, array_like=True):
    """A step takes base_s + prefill tokens * prefill_token_s + sequences * sequence_s + KV tokens * kv_token_s."""

    base_s: float
    prefill_token_s: float
    """Of one prompt token near the beginning of its context."""
    sequence_s: float
    """Of one decoding request."""
    kv_token_s: float
    """Of one resident token that decoding requests attend to."""
