"""Whose turn it is among tenants, by what each has been given: virtual token counters.

After "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): a tenant's counter grows with its prompt
and output tokens, and who waits with the smallest goes next. A tenant that was away resumes where those who were served
meanwhile are, so that nobody saves up turns (start-time fair queuing, Goyal et al., SIGCOMM 1996).
"""

PROMPT_WEIGHT = 1
"""Of an uncached prompt token."""
OUTPUT_WEIGHT = 2
"""Of an output token."""

_MAX_IDLE = 1024
"""Counters kept before those that have no effect are dropped."""


class FairShares:
    """One counter a tenant; a tenant without one stands where a newcomer would."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._served = 0.0
        """Where the tenant stood that was served last."""

    def position(self, tenant: str) -> float:
        """Return what the tenant has been given; the smallest goes next."""
        return self._counters.get(tenant, self._served)

    def join(self, tenant: str) -> None:
        """The tenant begins to wait."""
        self._counters[tenant] = max(self.position(tenant), self._served)
        if len(self._counters) > _MAX_IDLE:
            kept = {name: counter for name, counter in self._counters.items() if counter > self._served}
            self._counters = kept | {tenant: self._counters[tenant]}

    def serve(self, tenant: str) -> None:
        """It is the tenant's turn."""
        self._served = max(self._served, self.position(tenant))

    def charge(self, tenant: str, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Count tokens that the tenant is given; less than 0 for those that it was charged for and did not get."""
        cost = PROMPT_WEIGHT * num_prompt_tokens + OUTPUT_WEIGHT * num_output_tokens
        self._counters[tenant] = self.position(tenant) + cost
