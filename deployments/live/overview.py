"""What serves now, put together from what groups announced and reported."""

from collections.abc import Collection, Iterable

from cluster.status import GroupStatus
from deployments.groups.directory import GroupDirectory
from deployments.groups.unbroken import UnbrokenStreams
from deployments.live.feed import GroupView, ModelView, RankView, Sees
from deployments.live.history import GroupNow, LiveHistory, kv_use


class Overview:
    """Reads a gateway's own state; keeps none. Lives on its event loop."""

    def __init__(self, directory: GroupDirectory, streams: UnbrokenStreams, expected: Collection[str]) -> None:
        """`expected`: names of models that are shown before any group of theirs appears."""
        self._directory = directory
        self._streams = streams
        self._expected = expected

    def connected_groups(self) -> Iterable[GroupNow]:
        """Yield every group that reports."""
        loads = self._directory.loads()
        for status in self._directory.statuses():
            if load := loads.get(status.group_id):
                yield GroupNow(status.group_id, status.model, load)

    def models(self, sees: Sees) -> list[ModelView]:
        """Return the models that are expected or have a group, by name."""
        lengths = {model.name: model.max_model_len for model in self._directory.models()}
        names = {status.model for status in self._directory.statuses()}.union(self._expected)
        return [self._model(name, lengths.get(name, 0)) for name in sorted(names) if sees(name)]

    def groups(self, history: LiveHistory, sees: Sees) -> list[GroupView]:
        """Return every known group, those of a model together, oldest first."""
        loads = self._directory.loads()
        views: list[GroupView] = []
        for status in sorted(self._directory.statuses(), key=lambda status: status.model):
            if not sees(status.model):
                continue
            load, rates = loads.get(status.group_id), history.rates(status.group_id)
            view = GroupView(
                group_id=status.group_id,
                model=status.model,
                application=status.application,
                state=status.state,
                is_connected=load is not None,
                generation=status.generation,
                world_size=status.world_size,
                error=status.error.message if status.error is not None else None,
                ranks=_ranks(status),
                num_running=load.num_running if load else 0,
                num_waiting=load.num_waiting if load else 0,
                num_preemptions=load.num_preemptions if load else 0,
                kv_use=kv_use(load) if load else 0.0,
                num_kv_tokens=load.num_kv_tokens if load else 0,
                max_kv_tokens=load.max_kv_tokens if load else 0,
                prompt_tokens_s=round(rates.prompt_tokens_s, 1),
                output_tokens_s=round(rates.output_tokens_s, 1),
                step_s=rates.step_s,
                wait_s=load.wait_s if load else 0.0,
            )
            views.append(view)
        return views

    def _model(self, name: str, max_model_len: int) -> ModelView:
        # Not indexed: that would make an entry of what was never asked for.
        counts = self._streams.counts.get(name)
        if counts is None:
            return ModelView(name, max_model_len, 0, 0, 0)
        return ModelView(name, max_model_len, counts.num_resumes, counts.num_retries, counts.num_given_up)


def _ranks(status: GroupStatus) -> list[RankView]:
    places = {place.rank: place for place in status.places}
    progress = {each.rank: each for each in status.progress}
    views: list[RankView] = []
    for rank in range(status.world_size):
        place, phase = places.get(rank), progress.get(rank)
        views.append(
            RankView(
                rank,
                place.node if place else None,
                place.pid if place else None,
                place.device if place else None,
                phase.phase if phase else None,
                phase.percent if phase else None,
            )
        )
    return views
