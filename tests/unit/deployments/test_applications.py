"""A Serve config is served by what it says, also where Serve itself does not read it."""

from pathlib import Path

import pytest
from ray.serve.schema import ServeDeploySchema

from core.config import read_yaml
from core.errors import InvalidConfig
from deployments.applications import OnlyRayCan, build, read_config

QUICKSTART = Path("configs/quickstart.yaml")


def application(index, **changes):
    data = read_yaml(QUICKSTART)
    data["applications"][index] |= changes
    return ServeDeploySchema.model_validate(data).applications[index]


def bound_deployment(built):
    return built._bound_deployment


@pytest.mark.parametrize(("index", "name"), [(0, "Gateway"), (1, "ReplicaGroup")])
def test_an_application_is_built_with_the_options_of_the_file(index, name):
    (wanted,) = read_yaml(QUICKSTART)["applications"][index]["deployments"]
    deployment = bound_deployment(build(application(index)))
    assert deployment.name == name
    assert deployment.max_ongoing_requests == wanted["max_ongoing_requests"]
    assert deployment.max_queued_requests == wanted["max_queued_requests"]
    assert deployment.num_replicas == wanted["num_replicas"]
    assert deployment.ray_actor_options["num_cpus"] == wanted["ray_actor_options"]["num_cpus"]


def test_what_the_file_leaves_open_has_our_default_and_not_serves():
    deployment = bound_deployment(build(application(0, deployments=[])))
    assert deployment.max_ongoing_requests == 2000


def test_args_reach_the_deployment_as_the_typed_model():
    (args,) = bound_deployment(build(application(1))).init_args
    assert args.name == "smollm2-135m"
    assert args.scheduler.max_running == 32


@pytest.mark.parametrize(
    "changes", [{"import_path": "elsewhere:app"}, {"runtime_env": {"env_vars": {"A": "b"}}}], ids=["import", "env"]
)
def test_what_only_ray_can_do_is_left_to_ray(changes):
    with pytest.raises(OnlyRayCan):
        build(application(1, **changes))


def test_every_problem_of_a_config_is_told_at_once(tmp_path):
    path = tmp_path / "typos.yaml"
    path.write_text(QUICKSTART.read_text().replace("num_replicas", "num_replica"))
    with pytest.raises(InvalidConfig) as error:
        read_config(path)
    assert error.value.message.count("num_replica: unknown key") == 2
