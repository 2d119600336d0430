"""An Auto Scaling group as moto plays it: machines start and end as the group is told."""

from typing import Any

import boto3

REGION = "us-east-1"
IMAGE = "ami-12c6146b"


def make_group(name: str, desired: int, max_size: int, hook: str | None = None) -> Any:
    """Make a group, return boto3's client; to be called under `mock_aws`."""
    ec2 = boto3.client("ec2", region_name=REGION)
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData={"ImageId": IMAGE, "InstanceType": "t3.micro"}
    )
    client = boto3.client("autoscaling", region_name=REGION)
    client.create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchTemplate={"LaunchTemplateName": name, "Version": "$Latest"},
        MinSize=0,
        MaxSize=max_size,
        DesiredCapacity=desired,
        VPCZoneIdentifier=subnet,
        NewInstancesProtectedFromScaleIn=True,
    )
    if hook is not None:
        client.put_lifecycle_hook(
            AutoScalingGroupName=name,
            LifecycleHookName=hook,
            LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
            HeartbeatTimeout=900,
        )
    return client


def instances_of(client: Any, name: str) -> list[str]:
    """Return the ids of the group's machines."""
    (group,) = client.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    return sorted(instance["InstanceId"] for instance in group["Instances"])


def desired_of(client: Any, name: str) -> int:
    """Return how many machines the group should have."""
    (group,) = client.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    return group["DesiredCapacity"]
