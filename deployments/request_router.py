"""Our routing for any Ray Serve deployment, by work and by prompts sent before, through Serve's public interface.

    @serve.deployment(
        request_router_config=RequestRouterConfig(
            request_router_class="deployments.request_router:CostRequestRouter",
            request_router_kwargs={"prefill_tokens_per_s": 20_000},
        )
    )

Every handle has a router of its own, which knows what went through that handle. That suits an ingress of one or two
copies in front of engines that say nothing of themselves. This project's own models need none of it: the gateway hears
from its replica groups what they hold and what they have to do.
"""

from random import Random

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.handle_routes import HandleRequest, HandleRoutes, HandleRoutesConfig


class CostRequestRouter(RequestRouter):
    """A Serve request router that sends each call where it costs least."""

    def initialize_state(self, **kwargs: object) -> None:
        """Take `request_router_kwargs`: the fields of HandleRoutesConfig. Raises InvalidConfig."""
        self._routes = HandleRoutes(HandleRoutesConfig.parse(kwargs, "request_router_kwargs"), Random())

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return one replica, on which the call counts from now on; all if Serve asks for no call in particular."""
        replicas = self.select_available_replicas(candidate_replicas) or candidate_replicas
        if pending_request is None:
            return [replicas]
        by_id = {replica.replica_id.unique_id: replica for replica in replicas}
        call_id = pending_request.metadata.internal_request_id
        request = HandleRequest.of((*pending_request.args, *pending_request.kwargs.values()))
        chosen = by_id[self._routes.choose(call_id, list(by_id), request)]
        # Serve tells the end of a call that was sent; of one that was cancelled before, only its future tells.
        pending_request.future.add_done_callback(
            lambda future: self._routes.end(call_id, is_done=False) if future.cancelled() else None
        )
        return [[chosen]]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count the call no longer."""
        self._routes.end(internal_request_id, replica_id.unique_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica that is gone."""
        super().on_replica_actor_died(replica_id)
        self._keep_current()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas there are, and forget all others."""
        super().update_replicas(replicas)
        self._keep_current()

    def _keep_current(self) -> None:
        self._routes.keep_only(replica_id.unique_id for replica_id in self.curr_replicas)
