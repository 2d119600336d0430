"""`terraform destroy` is all it takes to stop paying."""

import pytest

pytestmark = pytest.mark.timeout(300)


def test_destroy_alone_removes_everything_that_apply_made(cluster):
    cluster.destroy()
    assert cluster.terraform.run("state", "list") == ""
    # moto keeps the machines of a group that is deleted by force; AWS ends them.
    assert [one for one in cluster.instances() if one.node["role"] == "head"] == []
    assert cluster.aws.client("secretsmanager").list_secrets()["SecretList"] == []
    assert cluster.aws.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
