"""The Auto Scaling group's hook that holds a new machine back until it is of use, or has it replaced."""

import logging
from typing import Any, Literal

from cluster.node.aws import ask_aws
from cluster.node.errors import BootFailed, NotYet, StopRequested
from cluster.node.patience import Patience

logger = logging.getLogger(__name__)

_LIMIT_S = 120.0


class LaunchHook:
    """One machine's hook. What it is told twice, or after the group has decided by itself, has no effect."""

    def __init__(self, autoscaling: Any, *, name: str, group: str, instance_id: str, patience: Patience) -> None:
        self._autoscaling = autoscaling
        self._name = name
        self._group = group
        self._instance_id = instance_id
        self._patience = patience

    def carry_on(self) -> None:
        """Have the machine counted as in service."""
        self._complete("CONTINUE", "node is alive in the cluster")

    def abandon(self, reason: str) -> None:
        """Have the machine replaced."""
        self._complete("ABANDON", reason)

    def _complete(self, result: Literal["CONTINUE", "ABANDON"], reason: str) -> None:
        fields = {"hook": self._name, "result": result, "reason": reason}
        try:
            self._patience.until(lambda: self._send(result), _LIMIT_S)
        except (BootFailed, StopRequested) as error:
            # The group decides alone when the hook's time is over; the node is as good as it is.
            logger.error("launch hook not completed", extra={**fields, "error": str(error)})
        else:
            logger.info("launch hook completed", extra=fields)

    def _send(self, result: str) -> None:
        def complete() -> None:
            self._autoscaling.complete_lifecycle_action(
                LifecycleHookName=self._name,
                AutoScalingGroupName=self._group,
                InstanceId=self._instance_id,
                LifecycleActionResult=result,
            )

        try:
            ask_aws(f"launch hook {self._name} of {self._group}", complete)
        except NotYet as error:
            # A machine that is long in service has no hook to complete: this is a restart of its node.
            if "No active Lifecycle Action" not in str(error):
                raise
            logger.info("launch hook was completed before", extra={"hook": self._name})
