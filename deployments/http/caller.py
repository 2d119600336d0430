"""Who sent a request. The guard notes it in the ASGI scope, the endpoints and the boundary read it there."""

from collections.abc import Callable
from typing import NamedTuple

from starlette.types import Scope

from core.clock import MonotonicClock
from deployments.http.api_keys import ApiKey
from deployments.http.quota import Quota

_SCOPE_KEY = "eagleray.caller"


class Caller(NamedTuple):
    """A known key, or anybody where no keys are configured."""

    name: str | None
    """The key's; None: anybody."""
    tenant: str
    models: frozenset[str]
    """Models that exist for this caller; empty: all."""
    priority: int
    quota: Quota
    may_ask: Callable[[str], bool] = lambda path: True
    """Whether a path is open for this caller."""

    @classmethod
    def of(cls, key: ApiKey, quota: Quota) -> "Caller":
        """Return the owner of `key`."""
        return cls(key.name, key.tenant or key.name, frozenset(key.models), key.priority, quota, key.may_ask)

    def sees(self, model: str) -> bool:
        """Whether a model of that name, should there be one, exists for this caller."""
        return not self.models or model in self.models

    @property
    def fair_share(self) -> str:
        """Whose turn the caller's requests take; callers without keys take one together, whatever salts they send."""
        return self.tenant or "-"

    def cache_salt(self, own: str | None) -> str:
        """Return the salt of the caller's cached prefixes, which no other tenant can have. `own`: a subdivision."""
        # A tenant's name has no slash, so no two pairs give the same salt.
        return f"{self.tenant}/{own or ''}" if self.tenant or own else ""


ANYBODY = Caller(None, "", frozenset(), 0, Quota(ApiKey(name="anybody", sha256="0" * 64), MonotonicClock()))
"""Without limits."""


def note_caller(scope: Scope, caller: Caller) -> None:
    """Make `caller_of(scope)` return `caller`."""
    scope[_SCOPE_KEY] = caller


def caller_of(scope: Scope) -> Caller:
    """Return who sent the request; ANYBODY until a guard says more."""
    return scope.get(_SCOPE_KEY, ANYBODY)
