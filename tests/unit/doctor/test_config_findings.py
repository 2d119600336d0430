"""What the doctor says of a Serve config: sound parts are judged, each finding has a file or facts that trip it."""

import copy
import time
from pathlib import Path

import pytest
import yaml

from core.config import read_yaml
from deployments.doctor import probing
from deployments.doctor.config import demand, fitting, locating, reading, settings
from deployments.doctor.config.hardware import Hardware
from deployments.doctor.config.locating import Location
from deployments.doctor.config.probes import config_probes, describe
from deployments.doctor.node.gpu import Card
from tests.support.checkpoints import make_checkpoint

GIB = 2**30
BIG = Hardware(num_cores=64, total_bytes=256 * GIB, free_bytes=200 * GIB, cards=())
SMALL = Hardware(num_cores=2, total_bytes=4 * GIB, free_bytes=3 * GIB, cards=())
CARD = Card(0, "H100", "570.1", (9, 0), 80 * GIB, 0, is_divided=False, num_memory_errors=0)


def levels(findings):
    return {(finding.level, finding.check) for finding in findings}


def said(findings, level, check):
    (finding,) = [finding for finding in findings if (finding.level, finding.check) == (level, check)]
    return f"{finding.found} -> {finding.advice}"


@pytest.fixture
def config(tmp_path):
    """Write a changed copy of the quickstart and return what the doctor reads of it."""

    def changed(change=lambda data: None):
        data = copy.deepcopy(read_yaml(Path("configs/quickstart.yaml")))
        change(data)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(data))
        return reading.read(path)

    return changed


def gateway(data):
    return data["applications"][0]


def model(data):
    return data["applications"][1]


def check(config, files=None):
    return list(settings.check(config, files or {}))


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_of_ours_is_read_whole_and_has_neither_warning_nor_problem(path):
    config = reading.read(path)
    assert len(config.gateways) == 1
    assert len(config.models) == 1
    assert config.port == 8000
    assert {level for level, _ in levels(check(config, settings.gather_key_files(config)))} <= {"ok", "note"}


def test_what_the_config_check_finds_is_a_problem_each():
    findings = list(describe(Path("x.yaml"), ["applications.0.argz: unknown key", "http_options: no"]))
    assert [finding.level for finding in findings] == ["problem", "problem"]
    assert findings[0].check == "config.sound"
    assert levels(describe(Path("x.yaml"), [])) == {("ok", "config.sound")}


def test_parts_that_are_not_sound_are_left_to_the_config_check(config):
    assert not config(lambda data: model(data)["args"].update(argz=1)).models
    assert not config(lambda data: gateway(data).update(args=["no"])).gateways


class TestSettings:
    def test_a_model_that_nothing_serves_and_one_that_nobody_can_call_are_warnings(self, config):
        findings = check(config(lambda data: gateway(data)["args"].update(models=["smollm"])))
        texts = [finding.found for finding in findings if finding.check == "config.models"]
        assert len(texts) == 2
        assert levels(findings) >= {("warning", "config.models")}
        assert "'smollm', which nothing in this file serves" in texts[0]

    def test_a_timeout_of_ours_over_that_of_serve_is_a_warning(self, config):
        findings = check(config(lambda data: data["http_options"].update(request_timeout_s=60)))
        assert ("warning", "config.timeouts") in levels(findings)

    @pytest.mark.parametrize(
        ("options", "level"), [({"host": "10.0.0.5"}, "warning"), ({}, "warning"), ({"host": "127.0.0.1"}, "note")]
    )
    def test_anonymous_callers_are_a_warning_where_other_machines_get_in_as_they_do_by_default(
        self, config, options, level
    ):
        def change(data):
            data["http_options"] = {"port": 8000, "request_timeout_s": 600, **options}
            gateway(data)["args"]["allow_anonymous"] = True

        assert (level, "config.keys") in levels(check(config(change)))

    @pytest.mark.parametrize(
        ("file", "level"),
        [
            (settings.KeyFile(3, ""), "ok"),
            (settings.KeyFile(0, ""), "warning"),
            (settings.KeyFile(0, "/k.yaml: cannot be read"), "problem"),
        ],
    )
    def test_a_file_of_keys_must_be_there_and_hold_some(self, config, file, level):
        read = config(lambda data: gateway(data)["args"].update(api_keys_file="/k.yaml"))
        assert (level, "config.keys") in levels(check(read, {Path("/k.yaml"): file}))

    def test_a_key_file_is_read_as_the_gateway_would(self, config, tmp_path):
        path = tmp_path / "keys.yaml"
        read = config(lambda data: gateway(data)["args"].update(api_keys_file=str(path)))
        assert "cannot be read" in settings.gather_key_files(read)[path].error
        entry = {"name": "a", "sha256": "0" * 64}
        path.write_text(yaml.safe_dump({"api_keys": [entry]}))
        assert settings.gather_key_files(read)[path] == settings.KeyFile(1, "")
        path.write_text(yaml.safe_dump({"api_keys": [entry, entry]}))
        assert "twice" in settings.gather_key_files(read)[path].error

    @pytest.mark.parametrize(
        ("scaling", "level"), [((3, 2), "problem"), ((0, 0), "problem"), ((1, 4), "ok"), ((0, 4), "ok")]
    )
    def test_bounds_of_scaling_must_leave_room(self, config, scaling, level):
        least, most = scaling

        def change(data):
            deployment = model(data)["deployments"][0]
            del deployment["num_replicas"]
            deployment["autoscaling_config"] = {"min_replicas": least, "max_replicas": most}

        assert (level, "config.scaling") in levels(check(config(change)))


class TestDemand:
    def test_a_replica_costs_its_leader_and_its_ranks(self, config):
        def change(data):
            model(data)["args"]["parallel"]["tensor_parallel_size"] = 3
            model(data)["args"]["placement"]["cpus_per_rank"] = 2

        (only,) = config(change).models
        assert demand.of_replica(only, BIG) == demand.Demand(pytest.approx(6.1), 0)

    def test_ranks_on_gpus_and_spares_count(self, config):
        def change(data):
            args = model(data)["args"]
            args["parallel"] |= {"tensor_parallel_size": 8, "device": "cuda"}
            args["placement"]["cpus_per_rank"] = 1

        (only,) = config(change).models
        assert demand.of_replica(only, BIG).gpus == 8

    def test_more_than_the_machine_has_is_a_warning_and_growing_over_it_a_note(self, config):
        def change(data):
            model(data)["args"]["placement"]["cpus_per_rank"] = 1
            deployment = model(data)["deployments"][0]
            del deployment["num_replicas"]
            deployment["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 9}

        assert levels(demand.check(config(change), SMALL)) == {("note", "config.cost"), ("note", "config.room")}
        tiny = Hardware(1, GIB, GIB, ())
        assert ("warning", "config.room") in levels(demand.check(config(change), tiny))
        assert ("ok", "config.room") in levels(demand.check(config(change), BIG))


class TestLocating:
    @pytest.mark.parametrize(
        ("location", "level"),
        [
            (Location(Path("/models/x")), "ok"),
            (Location(None, "hub", 5 * GIB), "note"),
            (Location(None, "s3"), "note"),
            (Location(None, error="no such repository"), "problem"),
            (Location(None, error="Name or service not known", is_certain=False), "warning"),
        ],
    )
    def test_where_a_model_is_decides_how_grave_it_is(self, location, level):
        assert levels(locating.check("app", "org/name", location)) == {(level, "config.model")}

    def test_local_files_are_found_without_asking_anybody(self, tmp_path):
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        assert locating.locate(str(tmp_path / "model.gguf"), None).path == tmp_path / "model.gguf"
        assert "no existing path" in locating.locate("./not-there", None).error
        assert "pip install nobody-made-this" in locating.locate("package:nobody-made-this", None).error
        assert locating.locate("s3://bucket/folder", None).elsewhere == "s3"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("tiny"), dtype="bfloat16")


class TestFitting:
    def fit(self, config, checkpoint, hardware=BIG, **parallel):
        def change(data):
            model(data)["args"]["parallel"] |= parallel
            model(data)["args"]["cache"]["memory"] = "1MiB"

        (only,) = config(change).models
        return list(fitting.check(only, checkpoint, hardware))

    def test_a_model_that_fits_is_explained_by_the_leaders_own_plan(self, config, checkpoint):
        findings = self.fit(config, checkpoint)
        assert {level for level, _ in levels(findings)} == {"ok"}
        assert "LlamaForCausalLM in safetensors" in said(findings, "ok", "config.checkpoint")
        assert "KV blocks of 16 tokens" in said(findings, "ok", "config.memory")

    def test_a_split_that_cannot_be_is_a_problem_that_names_what_can(self, config, checkpoint):
        text = said(self.fit(config, checkpoint, tensor_parallel_size=3), "problem", "config.checkpoint")
        assert "use 1, 2 or 4" in text

    def test_heads_that_do_not_divide_or_are_copied_are_a_note(self, config, checkpoint, tmp_path):
        assert ("note", "config.split") in levels(self.fit(config, checkpoint, tensor_parallel_size=4))
        uneven = make_checkpoint(
            "LlamaForCausalLM", tmp_path, num_attention_heads=6, num_key_value_heads=3, hidden_size=96
        )
        text = said(self.fit(config, uneven, tensor_parallel_size=2), "note", "config.split")
        assert "2 to 4 query heads" in text

    def test_a_damaged_checkpoint_is_a_problem(self, config, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        assert levels(self.fit(config, tmp_path)) == {("problem", "config.checkpoint")}

    def test_memory_that_does_not_suffice_is_a_problem_with_the_numbers(self, config, checkpoint):
        cramped = Hardware(2, GIB, 2**20, ())
        assert "weights need" in said(self.fit(config, checkpoint, cramped), "problem", "config.memory")

    def test_cards_of_this_machine_are_judged_where_there_are_enough(self, config, checkpoint):
        hardware = Hardware(8, 64 * GIB, 60 * GIB, (CARD, CARD))
        text = said(
            self.fit(config, checkpoint, hardware, tensor_parallel_size=2, device="cuda"), "ok", "config.memory"
        )
        assert "rank 1 (cuda)" in text

    def test_without_cards_the_smallest_that_would_do_is_named(self, config, checkpoint):
        text = said(self.fit(config, checkpoint, device="cuda"), "note", "config.memory")
        assert "fits GPUs of 16 GB or more" in text


def test_the_doctor_looks_at_a_whole_config_and_outlives_one_that_is_no_yaml(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("{")
    started_s = time.monotonic()
    findings = probing.run([probe for probe in config_probes(path) if probe.name != "config.sound"])
    assert time.monotonic() - started_s < 60
    assert {finding.level for finding in findings} == {"warning"}
    assert all("not valid YAML" in finding.found for finding in findings)
