"""Whether a gateway can answer: every expected model has a ready group and has just generated a token.

A process that exists proves nothing, so the proof is a one-token generation on the way every request takes. Proofs are
kept for a moment and made once for all who ask at the same time; traffic counts as proof too, and a group that is too
busy for a probe is serving.
"""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from cluster.status import GroupStatus
from core.clock import Clock
from core.errors import EaglerayError, QueueFull
from deployments.gateway.config import GatewayConfig
from deployments.gateway.model_catalog import GatewayModel, ModelCatalog
from deployments.groups.directory import GroupDirectory
from engine.request import GenerationRequest
from parallel.sampling.params import SamplingParams


class RankProgress(msgspec.Struct, frozen=True):
    """How far a rank is."""

    rank: int
    phase: str
    percent: int
    detail: str


class GroupReport(msgspec.Struct, frozen=True):
    """One replica group, as it last announced itself."""

    group_id: str
    application: str
    state: str
    generation: int
    world_size: int
    progress: list[RankProgress]
    error: str | None

    @classmethod
    def of(cls, status: GroupStatus) -> "GroupReport":
        """Return what operators want to see of `status`; never the channel's secret."""
        progress = [RankProgress(p.rank, p.phase, p.percent, p.detail) for p in status.progress]
        error = status.error.message if status.error else None
        return cls(
            status.group_id, status.application, status.state, status.generation, status.world_size, progress, error
        )


class ModelReport(msgspec.Struct, frozen=True):
    """One model."""

    model: str
    is_ready: bool
    reason: str | None
    """Why not."""
    groups: list[GroupReport]


class ReadinessReport(msgspec.Struct, frozen=True):
    """The body of /readyz."""

    status: Literal["ready", "not_ready"]
    models: list[ModelReport]

    @property
    def is_ready(self) -> bool:
        """Whether traffic should come."""
        return self.status == "ready"


class _Proof(NamedTuple):
    at_s: float
    reason: str | None
    """None: a token was generated."""


class Readiness:
    """Answers /readyz. Lives on one event loop."""

    def __init__(self, config: GatewayConfig, directory: GroupDirectory, catalog: ModelCatalog, clock: Clock) -> None:
        self._config = config
        self._directory = directory
        self._catalog = catalog
        self._clock = clock
        self._proofs: dict[str, _Proof] = {}
        self._probes: dict[str, asyncio.Task[_Proof]] = {}

    def saw_tokens(self, model: str) -> None:
        """Take a request that just generated as proof."""
        self._proofs[model] = _Proof(self._clock.now_s(), None)

    async def report(self) -> ReadinessReport:
        """Return the state of every expected model, or of every known one if none is expected; may wait for a probe."""
        names = self._config.models or sorted({status.model for status in self._directory.statuses()})
        models = await asyncio.gather(*map(self._model_report, names))
        # Without a list of expected models, one that answers is enough.
        is_enough = all if self._config.models else any
        is_ready = is_enough(model.is_ready for model in models)
        return ReadinessReport("ready" if is_ready else "not_ready", list(models))

    async def close(self) -> None:
        """Stop probing."""
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    async def _model_report(self, name: str) -> ModelReport:
        statuses = self._directory.statuses(name)
        if self._is_asleep(name, statuses):
            reason = None
        else:
            reason = self._why_not_ready(statuses) or (await self._proof(name)).reason
        return ModelReport(name, reason is None, reason, [GroupReport.of(status) for status in statuses])

    def _is_asleep(self, name: str, statuses: Sequence[GroupStatus]) -> bool:
        """Return whether requests for the model will be held until its first group runs, which they have started."""
        may_sleep = name in self._config.sleeping.applications
        return may_sleep and not any(status.state in ("ready", "failed") for status in statuses)

    def _why_not_ready(self, statuses: Sequence[GroupStatus]) -> str | None:
        if not statuses:
            return "no replica group has announced itself"
        if not any(status.state == "ready" for status in statuses):
            return "no replica group is ready"
        return None

    async def _proof(self, name: str) -> _Proof:
        proof = self._proofs.get(name)
        if proof is not None and self._clock.now_s() - proof.at_s <= self._config.probe_cache_s:
            return proof
        if name not in self._probes:
            self._probes[name] = probe = asyncio.create_task(self._probe(name))
            probe.add_done_callback(lambda _: self._probes.pop(name, None))
        # Whoever asked first may leave; the others still wait for the same probe.
        return await asyncio.shield(self._probes[name])

    async def _probe(self, name: str) -> _Proof:
        reason: str | None = None
        try:
            async with asyncio.timeout(self._config.probe_timeout_s):
                await self._generate_one_token(self._catalog.get(name))
        except QueueFull:
            pass  # too busy to be probed: it serves
        except EaglerayError as error:
            failure = self._catalog.failure(name)
            reason = (failure or error).message
        except TimeoutError:
            reason = f"no token was generated within {self._config.probe_timeout_s:g} s"
        proof = self._proofs[name] = _Proof(self._clock.now_s(), reason)
        return proof

    async def _generate_one_token(self, model: GatewayModel) -> None:
        token_ids = (await model.encode("Hello"))[:1]
        request = GenerationRequest(
            request_id=f"probe-{uuid.uuid4().hex}",
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            sampling=SamplingParams(max_tokens=1, seed=0, temperature=0),
            deadline_s=self._config.probe_timeout_s,
            cache_salt="probe",
        )
        # Not an unbroken stream: a probe is to find out what one would hide.
        async with await self._directory.submit(model.name, request) as stream:
            async for event in stream:
                if event.error is not None:
                    raise event.error.to_error()
