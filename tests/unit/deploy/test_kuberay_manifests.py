"""Manifests for KubeRay: the schemas of Kubernetes, the fields of KubeRay v1.7 that are used, and one Serve config."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from ray.serve.schema import ServeDeploySchema

from core.config import read_yaml
from deployments.check import check_config
from tests.support.source_tree import ROOT

KUBERAY = ROOT / "deploy" / "kuberay"
FOLDERS = ("cpu-smoke", "gpu-tp")
KUBERNETES = "1.33"


def embed_program():
    spec = importlib.util.spec_from_file_location("kuberay_embed", KUBERAY / "embed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EMBED = embed_program()


class Strict(BaseModel):
    """Fields under the names that KubeRay gives them; any other name is an error."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class SecretKey(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secret_key_ref: SecretKey = Field(alias="secretKeyRef")


class RedisPassword(Strict):
    value_from: ValueFrom = Field(alias="valueFrom")


class FaultTolerance(Strict):
    redis_address: str = Field(alias="redisAddress", pattern=r"^[\w.-]+:\d+$")
    redis_password: RedisPassword = Field(alias="redisPassword")


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]
    secret_name: str | None = Field(default=None, alias="secretName")


class HeadGroup(Strict):
    start: dict[str, str] = Field(alias="rayStartParams")
    template: dict[str, Any]


class WorkerGroup(HeadGroup):
    name: str = Field(alias="groupName", pattern=r"^[a-z0-9-]{1,63}$")
    replicas: int
    least: int = Field(alias="minReplicas")
    most: int = Field(alias="maxReplicas")
    num_hosts: int = Field(default=1, alias="numOfHosts")
    labels: dict[str, str] = {}


class ClusterSpec(Strict):
    ray_version: str = Field(alias="rayVersion")
    auth: AuthOptions = Field(alias="authOptions")
    fault_tolerance: FaultTolerance | None = Field(default=None, alias="gcsFaultToleranceOptions")
    head: HeadGroup = Field(alias="headGroupSpec")
    workers: list[WorkerGroup] = Field(default=[], alias="workerGroupSpecs")


class UpgradeStrategy(Strict):
    type: Literal["None", "NewCluster", "NewClusterWithIncrementalUpgrade"]


class ServiceSpec(Strict):
    serve_config: str = Field(alias="serveConfigV2")
    upgrade: UpgradeStrategy = Field(default=UpgradeStrategy(type="NewCluster"), alias="upgradeStrategy")
    excludes_head: bool = Field(default=False, alias="excludeHeadPodFromServeSvc")
    cluster: ClusterSpec = Field(alias="rayClusterConfig")


class Credentials(Strict):
    type: Literal["Bearer"]
    credentials: SecretKey


class Endpoint(Strict):
    port: str
    path: str = "/metrics"
    interval: str
    authorization: Credentials


class Labels(Strict):
    labels: dict[str, str] = Field(alias="matchLabels")


class PodMonitorSpec(Strict):
    selector: Labels
    endpoints: list[Endpoint] = Field(alias="podMetricsEndpoints")


class ServiceMonitorSpec(Strict):
    selector: Labels
    endpoints: list[Endpoint]


def documents(folder):
    """Every object that `kubectl apply -k` of the folder would make."""
    listed = read_yaml(KUBERAY / folder / "kustomization.yaml")["resources"]
    return [data for name in listed for data in yaml.safe_load_all((KUBERAY / folder / name).read_text())]


def kinds(folder, kind):
    return [data for data in documents(folder) if data["kind"] == kind]


def service_of(folder):
    (data,) = kinds(folder, "RayService")
    return ServiceSpec.model_validate(data["spec"])


def serve_config_of(folder):
    return yaml.safe_load(service_of(folder).serve_config)


def groups_of(folder):
    cluster = service_of(folder).cluster
    return [cluster.head, *cluster.workers]


def container_of(group):
    (container,) = group.template["spec"]["containers"]
    return container


def everything(folder):
    """Each folder's objects that Kubernetes itself knows, and each pod that KubeRay makes."""
    for data in documents(folder):
        if data["kind"] not in ("RayService", "PodMonitor", "ServiceMonitor"):
            yield data
    for number, group in enumerate(groups_of(folder)):
        metadata = {**group.template["metadata"], "name": f"pod-{number}"}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group.template["spec"]}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_and_every_pod_fits_kubernetes_own_schema(folder):
    for data in everything(folder):
        kubernetes_validate.validate(data, KUBERNETES, strict=True)


def test_the_schema_would_find_a_misspelt_field():
    pod = next(data for data in everything("gpu-tp") if data["kind"] == "Pod")
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_monitors_have_the_fields_of_the_prometheus_operator():
    (pods,), (services,) = kinds("gpu-tp", "PodMonitor"), kinds("gpu-tp", "ServiceMonitor")
    assert pods["apiVersion"] == services["apiVersion"] == "monitoring.coreos.com/v1"
    (endpoint,) = PodMonitorSpec.model_validate(pods["spec"]).endpoints
    assert endpoint.authorization.credentials.name == service_of("gpu-tp").cluster.auth.secret_name
    ports = {port["name"] for group in groups_of("gpu-tp") for port in container_of(group)["ports"]}
    for spec in (PodMonitorSpec.model_validate(pods["spec"]), ServiceMonitorSpec.model_validate(services["spec"])):
        assert {endpoint.port for endpoint in spec.endpoints} <= ports


@pytest.mark.parametrize("path", EMBED.manifests(), ids=lambda path: path.parent.name)
def test_the_serve_config_is_that_of_configs_with_the_changes_beside_it(path):
    assert path.read_text() == EMBED.embedded(path), "run: python deploy/kuberay/embed.py"


def test_every_folder_is_tested():
    assert tuple(path.parent.name for path in EMBED.manifests()) == FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_serve_config_passes_ray_and_our_own_check(folder):
    config = serve_config_of(folder)
    assert check_config(config) == []
    ServeDeploySchema.model_validate(config)


def test_changes_are_merged_by_key_and_by_name_and_one_that_hits_nothing_is_refused():
    base = {"a": {"x": 1, "y": 2}, "apps": [{"name": "m", "args": {"p": 1}}, {"name": "g"}], "plain": [1]}
    changes = {"a": {"y": 3}, "apps": [{"name": "m", "args": {"q": 2}}], "plain": [2]}
    assert EMBED.merged(base, changes) == {
        "a": {"x": 1, "y": 3},
        "apps": [{"name": "m", "args": {"p": 1, "q": 2}}, {"name": "g"}],
        "plain": [2],
    }
    with pytest.raises(KeyError, match="typo"):
        EMBED.merged(base, {"apps": [{"name": "typo"}]})


def test_check_mode_finds_a_manifest_that_is_not_up_to_date(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "deploy" / "kuberay" / "x"
    folder.mkdir(parents=True)
    (tmp_path / "c.yaml").write_text("http_options: {port: 1}\napplications: []\n")
    (folder / "serve-changes.yaml").write_text("http_options: {host: h}\n")
    manifest = folder / "rayservice.yaml"
    head = "metadata:\n  annotations: {eagleray/serve-config: c.yaml}\nspec:\n"
    manifest.write_text(f"{head}  serveConfigV2: |\n    old: 1\n  rayClusterConfig: {{}}\n")
    monkeypatch.setattr(EMBED, "ROOT", tmp_path)
    monkeypatch.setattr(EMBED, "HERE", folder.parent)
    assert EMBED.main(["--check"]) == 1
    assert "not up to date" in capsys.readouterr().err
    assert EMBED.main([]) == 0
    assert EMBED.main(["--check"]) == 0
    spec = yaml.safe_load(manifest.read_text())["spec"]
    assert yaml.safe_load(spec["serveConfigV2"]) == {"http_options": {"port": 1, "host": "h"}, "applications": []}
    assert spec["rayClusterConfig"] == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_manifest_holds_a_secret_and_callers_need_a_key(folder):
    assert not kinds(folder, "Secret")
    (gateway,) = [a for a in serve_config_of(folder)["applications"] if a["name"] == "gateway"]
    file = Path(gateway["args"]["api_keys_file"])
    serving = [g for g in groups_of(folder) if any(p["name"] == "serve" for p in container_of(g)["ports"])]
    assert serving
    for group in serving:
        mounts = {mount["mountPath"] for mount in container_of(group)["volumeMounts"]}
        assert str(file.parent) in mounts
    assert service_of(folder).cluster.auth.mode == "token"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_runs_without_root_and_rights_and_has_shared_memory(folder):
    for group in groups_of(folder):
        spec, container = group.template["spec"], container_of(group)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        (shm,) = [volume for volume in spec["volumes"] if volume["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert not container["image"].endswith(":latest")


def test_no_worker_has_the_operators_probe_which_asks_a_proxy_that_may_not_be_there():
    by_name = {
        group.name: container_of(group)["readinessProbe"]["httpGet"] for group in service_of("gpu-tp").cluster.workers
    }
    assert by_name["gateway"] == {"path": "/readyz", "port": "serve"}
    assert by_name["gpu"] == {"path": "/api/healthz", "port": 52365}


def test_the_service_reaches_gateways_and_gateways_run_where_it_reaches():
    (service,) = [data for data in kinds("gpu-tp", "Service") if data["metadata"]["name"] == "eagleray"]
    selected = [
        g
        for g in groups_of("gpu-tp")
        if service["spec"]["selector"].items() <= g.template["metadata"]["labels"].items()
    ]
    assert [group.name for group in selected] == ["gateway"]
    (gateway, model) = serve_config_of("gpu-tp")["applications"]
    wanted = gateway["deployments"][0]["ray_actor_options"]["label_selector"]
    assert wanted.items() <= selected[0].labels.items()
    assert gateway["deployments"][0]["num_replicas"] <= selected[0].replicas
    leader = model["deployments"][0]["ray_actor_options"]["label_selector"]
    assert [g.name for g in service_of("gpu-tp").cluster.workers if leader.items() <= g.labels.items()] == ["gpu"]


def test_the_ranks_of_every_copy_fit_its_pods():
    (gpu,) = [group for group in service_of("gpu-tp").cluster.workers if group.name == "gpu"]
    args = serve_config_of("gpu-tp")["applications"][1]["args"]
    ranks = args["parallel"]["tensor_parallel_size"]
    limits = container_of(gpu)["resources"]["limits"]
    assert gpu.num_hosts * int(limits["nvidia.com/gpu"]) == ranks * args["placement"]["gpus_per_rank"]
    leader = serve_config_of("gpu-tp")["applications"][1]["deployments"][0]["ray_actor_options"]["num_cpus"]
    assert gpu.num_hosts * int(limits["cpu"]) >= ranks * args["placement"]["cpus_per_rank"] + leader
    assert args["placement"]["strategy"] == "PACK"


def test_pods_outlive_the_drain_of_their_streams():
    for group in service_of("gpu-tp").cluster.workers:
        for application in serve_config_of("gpu-tp")["applications"]:
            grace_s = application["deployments"][0]["graceful_shutdown_timeout_s"]
            assert group.template["spec"]["terminationGracePeriodSeconds"] > grace_s


def test_disruption_budgets_and_policies_select_pods_that_exist():
    labels = [group.template["metadata"]["labels"] for group in groups_of("gpu-tp")]
    labels += [data["spec"]["template"]["metadata"]["labels"] for data in kinds("gpu-tp", "StatefulSet")]
    for data in kinds("gpu-tp", "PodDisruptionBudget") + kinds("gpu-tp", "NetworkPolicy"):
        spec = data["spec"]
        wanted = spec.get("selector", spec.get("podSelector"))["matchLabels"]
        assert any(wanted.items() <= have.items() for have in labels), data["metadata"]["name"]


def test_the_head_finds_redis_by_the_name_and_password_it_has():
    tolerance = service_of("gpu-tp").cluster.fault_tolerance
    (redis,) = kinds("gpu-tp", "StatefulSet")
    host, _, port = tolerance.redis_address.partition(":")
    (service,) = [data for data in kinds("gpu-tp", "Service") if data["metadata"]["name"] == host]
    assert service["spec"]["ports"][0]["port"] == int(port)
    env = redis["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]
    secret = tolerance.redis_password.value_from.secret_key_ref
    assert env == {"name": secret.name, "key": secret.key}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_secret_is_made_in_the_docs_and_the_image_has_that_ray(folder):
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    text = "".join(path.read_text() for path in (KUBERAY / folder).glob("*.yaml"))
    names = {name for name in ("api-keys", "ray-token", "redis", "hub", "scraper") if f"eagleray-{name}" in text}
    assert all(f"secret generic eagleray-{name}" in page for name in names)
    import ray

    assert service_of(folder).cluster.ray_version == ray.__version__
