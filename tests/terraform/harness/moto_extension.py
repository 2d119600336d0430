"""What the modules need and moto 5.2 lacks; and no waits for what takes time only on AWS."""

import itertools
import json
from datetime import UTC, datetime
from typing import Any

from moto.autoscaling.responses import AutoScalingResponse
from moto.budgets.responses import BudgetsResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.responses import EC2Response
from moto.elbv2.models import FakeLoadBalancer
from moto.ssm.models import Parameter, ParameterDict

_GPU_IMAGES = "/aws/service/deeplearning/ami/"
_GPU_IMAGE = "ami-1ecc1e67"
"""An image that moto has."""


class PlacementGroups:
    """The placement groups of the one account there is."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)

    def create(self, response: EC2Response) -> ActionResult:
        """Answer CreatePlacementGroup."""
        name = response._get_param("GroupName")
        tags = response._parse_tag_specification("placement-group").get("placement-group", {})
        self._groups[name] = {
            "GroupName": name,
            "GroupId": f"pg-{next(self._numbers):017x}",
            "GroupArn": f"arn:aws:ec2:{response.region}:{response.current_account}:placement-group/{name}",
            "Strategy": response._get_param("Strategy"),
            "State": "available",
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        }
        return ActionResult({"PlacementGroup": self._groups[name]})

    def describe(self, response: EC2Response) -> ActionResult:
        """Answer DescribePlacementGroups."""
        names, ids = response._get_param("GroupNames", []), response._get_param("GroupIds", [])
        found = [
            group
            for group in self._groups.values()
            if (not names or group["GroupName"] in names) and (not ids or group["GroupId"] in ids)
        ]
        if names and not found:
            raise EC2ClientError("InvalidPlacementGroup.Unknown", f"The Placement Group '{names[0]}' is unknown.")
        return ActionResult({"PlacementGroups": found})

    def delete(self, response: EC2Response) -> ActionResult:
        """Answer DeletePlacementGroup."""
        self._groups.pop(response._get_param("GroupName"), None)
        return ActionResult({})


def extend_moto(hook_results: dict[str, str]) -> None:
    """Give moto's classes what they lack; changes them for the whole process.

    `hook_results`: gets what each machine, by instance id, has said last to its lifecycle hook.
    """

    def complete_lifecycle_action(response: AutoScalingResponse) -> ActionResult:
        hook_results[response._get_param("InstanceId")] = response._get_param("LifecycleActionResult")
        return EmptyResult()

    AutoScalingResponse.complete_lifecycle_action = complete_lifecycle_action
    groups = PlacementGroups()
    EC2Response.create_placement_group = lambda response: groups.create(response)
    EC2Response.describe_placement_groups = lambda response: groups.describe(response)
    EC2Response.delete_placement_group = lambda response: groups.delete(response)
    EC2Response.monitor_instances = lambda response: ActionResult({"InstanceMonitorings": []})
    BudgetsResponse.describe_subscribers_for_notification = _describe_subscribers
    BudgetsResponse.list_tags_for_resource = lambda response: json.dumps({"ResourceTags": []})
    _seed_gpu_images()
    _leave_out_missing_addresses()
    _start_load_balancers_at_once()


def _describe_subscribers(response: BudgetsResponse) -> str:
    subscriber = {"SubscriptionType": "SNS", "Address": f"arn:aws:sns:us-east-1:{response.current_account}:alarms"}
    return json.dumps({"Subscribers": [subscriber]})


def _seed_gpu_images() -> None:
    """Have every public parameter of a Deep Learning AMI name an image; moto brings those of Amazon Linux only."""
    load_others = ParameterDict._check_loading_status

    def load(parameters: ParameterDict, key: str) -> None:
        load_others(parameters, key)
        name = str(key or "")
        if name.startswith(_GPU_IMAGES) and name not in parameters.keys():  # noqa: SIM118 - `in` would ask us again
            dict.__setitem__(parameters, name, [_parameter(parameters, name)])

    ParameterDict._check_loading_status = load


def _parameter(parameters: ParameterDict, name: str) -> Parameter:
    return Parameter(
        account_id=parameters.account_id,
        name=name,
        value=_GPU_IMAGE,
        parameter_type="String",
        description=None,
        allowed_pattern=None,
        keyid=None,
        last_modified_date=datetime.now(UTC),
        version=1,
        data_type="text",
    )


def _leave_out_missing_addresses() -> None:
    """Say nothing of the public address of interfaces without one; an empty answer reads like an address."""
    find = NetworkInterface.association.fget
    assert find is not None
    NetworkInterface.association = property(lambda interface: find(interface) or None)


def _start_load_balancers_at_once() -> None:
    """Save the half minute that Terraform lets pass before it asks a second time."""
    make = FakeLoadBalancer.__init__

    def make_active(balancer: FakeLoadBalancer, *arguments: Any, **options: Any) -> None:
        make(balancer, *arguments, **options)
        balancer.state = "active"

    FakeLoadBalancer.__init__ = make_active
