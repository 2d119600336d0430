"""A model scales by its work or not at all, and a misspelt setting is found before production finds it."""

import copy
from pathlib import Path

import pytest
from ray.serve.schema import ServeDeploySchema

from core.config import read_yaml
from deployments.applications import build
from deployments.check import check_config

AUTOSCALING = Path("configs/autoscaling.yaml")


def problems_with(path, value):
    """Return the problems of the example config with `value` at `path` below its autoscaling settings."""
    data = copy.deepcopy(read_yaml(AUTOSCALING))
    place = data["applications"][1]["deployments"][0]["autoscaling_config"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return check_config(data)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["policy", "policy_function"], "ray.serve.autoscaling_policy:default_autoscaling_policy", "Serve counts none"),
        (["policy", "policy_kwargs", "target_laod"], 0.5, "target_laod"),
        (["policy", "policy_kwargs", "target_load"], 1.5, "less than or equal to 1"),
        (["policy", "policy_kwargs", "to_zero_after_s"], 600, "min_replicas: 0"),
        (["upscale_delay_s"], 30, "set it to 0"),
        (["downscale_delay_s"], 600, "set it to 0"),
        (["max_replcas"], 4, "max_replcas: unknown key"),
    ],
)
def test_what_would_not_scale_as_it_says_is_refused(path, value, words):
    (problem,) = problems_with(path, value)
    assert words in problem
    assert problem.startswith("applications.1.deployments.0.autoscaling_config")


def scaled_to_zero(applications):
    data = copy.deepcopy(read_yaml(AUTOSCALING))
    data["applications"][0]["args"]["sleeping"] = {"applications": applications}
    scaling = data["applications"][1]["deployments"][0]["autoscaling_config"]
    scaling["min_replicas"] = 0
    scaling["policy"]["policy_kwargs"]["to_zero_after_s"] = 600
    return check_config(data)


def test_a_model_that_may_be_scaled_to_zero_needs_a_gateway_that_wakes_it():
    assert scaled_to_zero({"smollm2-135m": "smollm2-135m"}) == []
    (problem,) = scaled_to_zero({})
    assert "no gateway would start the first replica" in problem
    assert any("no model application 'gone'" in problem for problem in scaled_to_zero({"smollm2-135m": "gone"}))


def test_serve_is_given_the_policy_with_its_settings():
    config = ServeDeploySchema.model_validate(read_yaml(AUTOSCALING))
    deployment = build(config.applications[1])._bound_deployment
    settings = deployment._deployment_config.autoscaling_config
    assert settings is not None
    policy = settings.policy.get_policy()(**settings.policy.policy_kwargs)
    assert (settings.min_replicas, settings.max_replicas) == (1, 4)
    assert policy._policy._config.target_load == 0.65
