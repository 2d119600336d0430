"""The Auto Scaling groups of the cluster's workers, asked and told by the loops of the head."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster.node.aws import ask_aws
from cluster.node.config import WorkerGroup
from cluster.node.errors import NotYet


class Fleet(NamedTuple):
    """An Auto Scaling group at one moment."""

    desired: int
    instances: Mapping[str, str]
    """Lifecycle state by instance id."""

    def is_in_service(self, instance_id: str) -> bool:
        """Whether the machine is one of the group's, up, and not ending."""
        return self.instances.get(instance_id) == "InService"

    @property
    def is_growing(self) -> bool:
        """Whether machines start that are not in service yet."""
        return any(state.startswith("Pending") for state in self.instances.values())


class AutoScaling:
    """The Auto Scaling groups of this cluster."""

    def __init__(self, client: Any) -> None:
        """`client`: boto3's of `autoscaling`."""
        self._client = client

    def fleet(self, group: WorkerGroup) -> Fleet:
        """Return the group as it is. Raises NotYet."""
        name = group.autoscaling_group
        answer = ask_aws(
            f"Auto Scaling group {name}",
            lambda: self._client.describe_auto_scaling_groups(AutoScalingGroupNames=[name]),
        )
        if not answer["AutoScalingGroups"]:
            raise NotYet(f"Auto Scaling group {name} does not exist; correct worker_groups in node.json")
        found = answer["AutoScalingGroups"][0]
        return Fleet(
            found["DesiredCapacity"],
            {instance["InstanceId"]: instance["LifecycleState"] for instance in found["Instances"]},
        )

    def grow(self, group: WorkerGroup, desired: int) -> None:
        """Have the group start machines until it has so many. Raises NotYet."""
        ask_aws(
            f"capacity of {group.autoscaling_group}",
            lambda: self._client.set_desired_capacity(
                AutoScalingGroupName=group.autoscaling_group, DesiredCapacity=desired, HonorCooldown=False
            ),
        )

    def give_back(self, instance_id: str, *, is_replaced: bool = False) -> None:
        """End a machine; the group is smaller by one then, or starts another. No harm if it is gone. Raises NotYet."""
        try:
            ask_aws(
                f"end of instance {instance_id}",
                lambda: self._client.terminate_instance_in_auto_scaling_group(
                    InstanceId=instance_id, ShouldDecrementDesiredCapacity=not is_replaced
                ),
            )
        except NotYet as error:
            if "Instance Id not found" not in str(error):
                raise

    def complete(self, group: str, hook: str, token: str, instance_id: str) -> None:
        """Let a machine go that a lifecycle hook holds; no harm if nothing holds it any more. Raises NotYet."""
        try:
            ask_aws(
                f"lifecycle hook {hook} of {group}",
                lambda: self._client.complete_lifecycle_action(
                    AutoScalingGroupName=group,
                    LifecycleHookName=hook,
                    LifecycleActionToken=token,
                    InstanceId=instance_id,
                    LifecycleActionResult="CONTINUE",
                ),
            )
        except NotYet as error:
            if "No active Lifecycle Action" not in str(error):
                raise
