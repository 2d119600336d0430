"""What the doctor says of a machine, from facts that are given: each finding has facts that trip it."""

import json
from dataclasses import replace

import pytest

from deployments.doctor.inside import Reply
from deployments.doctor.node import fabric, gpu, kernels, machine, ports, ray_here, role, storage, versions

GIB = 2**30


def levels(findings):
    return {(finding.level, finding.check) for finding in findings}


def said(findings, level, check):
    """The text of the one finding of that level and name."""
    (finding,) = [finding for finding in findings if (finding.level, finding.check) == (level, check)]
    return f"{finding.found} -> {finding.advice}"


VERSIONS = versions.VersionFacts(
    python=(3, 11, 9),
    installed={"eagleray": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "aiohttp": "3.12.0"},
    requires={"eagleray": ("torch<2.14,>=2.11", "ray[serve]>=2.60"), "ray": ('aiohttp>=3.13; extra == "serve"',)},
)


class TestVersions:
    def test_packages_that_fit_are_named_with_their_versions(self):
        facts = replace(VERSIONS, requires={**VERSIONS.requires, "ray": ('aiohttp>=3.11; extra == "serve"',)})
        findings = list(versions.check_versions(facts))
        assert levels(findings) == {("ok", "node.python"), ("ok", "node.packages")}
        assert "torch 2.13.0, ray 2.60.0" in said(findings, "ok", "node.packages")

    def test_a_package_that_an_extra_of_another_needs_newer_is_a_problem(self):
        text = said(list(versions.check_versions(VERSIONS)), "problem", "node.packages")
        assert "ray needs aiohttp>=3.13, and 3.12.0 is installed" in text

    def test_a_package_that_is_missing_is_a_problem(self):
        installed = {name: version for name, version in VERSIONS.installed.items() if name != "torch"}
        findings = list(versions.check_versions(replace(VERSIONS, installed=installed)))
        texts = [finding.found for finding in findings if finding.level == "problem"]
        assert any("eagleray needs torch" in text and "not installed" in text for text in texts)

    def test_requirements_of_other_machines_do_not_count(self):
        requires = {"eagleray": ('torch>=99; sys_platform == "plan9"',)}
        assert ("ok", "node.packages") in levels(versions.check_versions(replace(VERSIONS, requires=requires)))

    def test_an_old_python_is_a_problem_and_a_missing_installation_a_note(self):
        findings = list(versions.check_versions(versions.VersionFacts((3, 10, 1), {}, {})))
        assert levels(findings) == {("problem", "node.python"), ("note", "node.packages")}

    def test_a_package_that_does_not_load_is_a_problem_with_its_last_words(self):
        facts = versions.ImportFacts("torch", "2.13.0", "ImportError: libcudart.so.13: cannot open")
        assert "libcudart" in said(list(versions.check_import(facts)), "problem", "node.imports")
        assert levels(versions.check_import(versions.ImportFacts("ray", None, ""))) == {("problem", "node.imports")}
        assert levels(versions.check_import(versions.ImportFacts("ray", "2.60", ""))) == {("ok", "node.imports")}

    def test_this_installation_fits_itself(self):
        assert ("problem", "node.packages") not in levels(versions.check_versions(versions.gather_versions()))


def kernel_facts(*levels, compiler="/usr/bin/gcc", cache_obstacle=""):
    return kernels.KernelFacts("x86_64", levels, compiler, cache_obstacle)


AVX2 = kernels.LevelFacts("avx2", "/cache/eagle-avx2.so", "")
AVX512 = kernels.LevelFacts("avx512", None, "")
PORTABLE = kernels.LevelFacts("portable", None, "")


class TestKernels:
    def test_kernels_that_are_compiled_are_named(self):
        assert "avx2 kernels: /cache" in said(list(kernels.check(kernel_facts(AVX2, PORTABLE))), "ok", "node.kernels")

    def test_kernels_that_will_be_compiled_are_a_note(self):
        findings = list(kernels.check(kernel_facts(AVX512, AVX2)))
        assert "compiled at the first start" in said(findings, "note", "node.kernels")

    def test_slower_kernels_than_the_cpu_could_run_are_a_warning(self):
        findings = list(kernels.check(kernel_facts(AVX512, AVX2, compiler=None)))
        assert "avx2 kernels, not avx512" in said(findings, "warning", "node.kernels")

    @pytest.mark.parametrize(
        ("facts", "reason"),
        [
            (kernel_facts(AVX512, PORTABLE, compiler=None), "no C compiler"),
            (kernel_facts(AVX512, PORTABLE, cache_obstacle="/ro cannot be written"), "/ro cannot be written"),
        ],
    )
    def test_without_kernels_and_a_way_to_them_torch_computes_and_the_reason_is_told(self, facts, reason):
        text = said(list(kernels.check(facts)), "warning", "node.kernels")
        assert "plain torch computes" in text
        assert reason in text

    def test_a_library_that_cannot_be_loaded_is_a_problem(self):
        broken = replace(AVX2, load_error="ABI version 3; 4 is needed")
        assert "ABI version 3" in said(list(kernels.check(kernel_facts(broken))), "problem", "node.kernels")

    def test_an_x86_without_avx2_is_a_warning(self, monkeypatch):
        assert levels(kernels.check(kernel_facts(PORTABLE))) >= {("warning", "node.cpu")}
        monkeypatch.setattr(kernels, "LEVELS", (kernels.LEVELS[-1],))  # as on ARM, where there is no better one
        assert levels(kernels.check(kernel_facts(PORTABLE))) >= {("note", "node.cpu")}


MACHINE = machine.MachineFacts(8, 8, 0.5, 64 * GIB, 60 * GIB, None, "madvise", 65536)


class TestMachine:
    def test_a_good_machine_has_nothing_to_say_but_ok(self):
        assert {level for level, _ in levels(machine.check_machine(MACHINE))} == {"ok"}

    @pytest.mark.parametrize(
        ("changes", "finding"),
        [
            ({"max_files": 1024}, ("warning", "node.open_files")),
            ({"huge_pages": "never"}, ("warning", "node.huge_pages")),
            ({"available_bytes": GIB}, ("problem", "node.memory")),
            ({"limit_bytes": GIB}, ("problem", "node.memory")),
            ({"load_1min": 40.0}, ("warning", "node.cores")),
            ({"num_usable_cores": 1}, ("warning", "node.cores")),
        ],
    )
    def test_each_thing_that_is_short_is_found(self, changes, finding):
        assert finding in levels(machine.check_machine(replace(MACHINE, **changes)))

    @pytest.mark.parametrize(
        ("facts", "finding"),
        [
            (machine.ClockFacts(1970, True), ("problem", "node.clock")),
            (machine.ClockFacts(2027, False), ("note", "node.clock")),
            (machine.ClockFacts(2027, None), ("ok", "node.clock")),
            (machine.ClockFacts(2027, True), ("ok", "node.clock")),
        ],
    )
    def test_a_clock_nobody_keeps_is_told(self, facts, finding):
        assert levels(machine.check_clock(facts)) == {finding}


ROOM = storage.Room(100 * GIB, 50 * GIB)


class TestStorage:
    @pytest.mark.parametrize(
        ("shm", "level"),
        [
            (None, "problem"),
            (storage.Room(8 * GIB, 2**20), "problem"),
            (storage.Room(GIB // 2, GIB // 2), "warning"),
            (ROOM, "ok"),
        ],
    )
    def test_shared_memory_is_judged_by_size_and_room(self, shm, level):
        assert levels(storage.check(storage.StorageFacts(shm, {}))) == {(level, "node.shm")}

    @pytest.mark.parametrize(
        ("cache", "level"),
        [
            (storage.Cache("/c", ROOM, is_writable=True), "ok"),
            (storage.Cache("/c", ROOM, is_writable=False), "problem"),
            (storage.Cache("/c", storage.Room(100 * GIB, GIB // 2), is_writable=True), "problem"),
            (storage.Cache("/c", storage.Room(100 * GIB, 4 * GIB), is_writable=True), "warning"),
        ],
    )
    def test_a_cache_needs_room_and_to_be_written(self, cache, level):
        assert (level, "node.disk") in levels(storage.check(storage.StorageFacts(ROOM, {"models": cache})))


CARD = gpu.Card(0, "H100", "570.1", (9, 0), 80 * GIB, GIB, is_divided=False, num_memory_errors=0)
TORCH = gpu.TorchView("13.0", 2, "2.28.9", "", ())
GPUS = gpu.GpuFacts(True, "", (CARD, replace(CARD, index=1)), TORCH, has_triton=True)


class TestGpu:
    def test_a_machine_without_gpus_gets_a_note(self):
        assert levels(gpu.check(gpu.GpuFacts(False, "", (), None, has_triton=False))) == {("note", "node.gpu")}

    def test_good_gpus_are_ok(self):
        assert levels(gpu.check(GPUS)) == {("ok", "node.gpu"), ("ok", "node.cuda"), ("ok", "node.gpu_peers")}

    @pytest.mark.parametrize(
        ("facts", "finding"),
        [
            (replace(GPUS, driver_error="no devices were found"), ("problem", "node.gpu")),
            (replace(GPUS, num_expected=3), ("problem", "node.gpu")),
            (replace(GPUS, has_device=False, cards=(), driver_error="failed"), ("problem", "node.gpu")),
            (replace(GPUS, cards=(replace(CARD, capability=(7, 5)),)), ("warning", "node.gpu")),
            (replace(GPUS, cards=(replace(CARD, is_divided=True),)), ("note", "node.gpu")),
            (replace(GPUS, cards=(replace(CARD, num_memory_errors=2),)), ("problem", "node.gpu_memory")),
            (replace(GPUS, cards=(replace(CARD, used_bytes=40 * GIB),)), ("warning", "node.gpu_memory")),
            (replace(GPUS, torch=replace(TORCH, built_for=None)), ("problem", "node.cuda")),
            (replace(GPUS, torch=replace(TORCH, error="driver too old")), ("problem", "node.cuda")),
            (replace(GPUS, has_triton=False), ("warning", "node.cuda")),
            (replace(GPUS, torch=replace(TORCH, strangers=((0, 1),))), ("warning", "node.gpu_peers")),
        ],
    )
    def test_each_fault_of_driver_card_and_torch_is_found(self, facts, finding):
        assert finding in levels(gpu.check(facts))

    def test_the_drivers_table_is_read_with_its_gaps(self):
        text = (
            "0, NVIDIA H100 80GB HBM3, 570.86.15, 9.0, 81559, 4, Disabled, 0\n"
            "1, Tesla T4, 535.1, 7.5, 15360, 0, [N/A], [N/A]\nwarning: something\n"
        )
        first, second = gpu.read_cards(text)
        assert first == gpu.Card(0, "NVIDIA H100 80GB HBM3", "570.86.15", (9, 0), 81559 * 2**20, 4 * 2**20, False, 0)
        assert (second.capability, second.num_memory_errors, second.is_divided) == ((7, 5), 0, False)

    def test_what_torch_says_is_read_and_its_silence_too(self):
        text = '{"built_for": "13.0", "count": 2, "nccl": "2.28.9", "error": "", "strangers": [[0, 1]]}'
        assert gpu.read_view(Reply(text, "")) == replace(TORCH, strangers=((0, 1),))
        assert gpu.read_view(Reply("", "no module named torch")) is None


class TestRole:
    def test_a_machine_without_node_json_has_no_role_to_speak_of(self, tmp_path):
        assert not list(role.check(role.gather(tmp_path / "node.json")))

    def test_a_node_json_that_cannot_be_read_is_a_problem_and_a_sound_one_is_told(self, tmp_path):
        path = tmp_path / "node.json"
        path.write_text("{}")
        assert levels(role.check(role.gather(path))) == {("problem", "node.role")}
        config = {"cluster": "c1", "region": "r", "role": "worker", "head_address": "10.0.0.1", "group": "gpu"}
        path.write_text(json.dumps(config | {"num_gpus": 8, "token_secret_arn": "arn"}))
        assert "worker of cluster c1, group gpu, 8 GPUs" in said(list(role.check(role.gather(path))), "ok", "node.role")


FABRIC = fabric.FabricFacts(True, 4, 4, "", has_nccl_plugin=True, max_locked_bytes=None)


class TestFabric:
    def test_a_machine_without_and_that_wants_none_is_not_mentioned(self):
        assert not list(fabric.check(replace(FABRIC, is_wanted=False, num_adapters=0, num_devices=0)))

    def test_good_fabric_is_ok(self):
        assert levels(fabric.check(FABRIC)) == {("ok", "node.efa")}

    @pytest.mark.parametrize(
        ("facts", "level"),
        [
            (replace(FABRIC, num_adapters=0), "problem"),
            (replace(FABRIC, num_devices=3), "problem"),
            (replace(FABRIC, provider=None), "problem"),
            (replace(FABRIC, provider="fi_getinfo: -61"), "problem"),
            (replace(FABRIC, has_nccl_plugin=False), "warning"),
            (replace(FABRIC, max_locked_bytes=65536), "problem"),
        ],
    )
    def test_each_thing_that_keeps_nccl_off_the_fabric_is_found(self, facts, level):
        assert (level, "node.efa") in levels(fabric.check(facts))


TOKEN = ray_here.TokenFacts("token", False, "/run/token", 32, 0o600)
SESSIONS = ray_here.SessionFacts(0, 2, 1000, ())


class TestRayHere:
    @pytest.mark.parametrize(
        ("facts", "level"),
        [
            (TOKEN, "ok"),
            (replace(TOKEN, has_value=True, num_bytes=None), "ok"),
            (replace(TOKEN, mode="disabled"), "warning"),
            (replace(TOKEN, num_bytes=None), "problem"),
            (replace(TOKEN, num_bytes=0), "problem"),
            (replace(TOKEN, mode=None, num_bytes=None), "note"),
            (replace(TOKEN, mode_bits=0o644), "warning"),
        ],
    )
    def test_the_token_is_judged_by_mode_presence_and_permissions(self, facts, level):
        assert levels(ray_here.check_token(facts)) == {(level, "node.ray_token")}

    def test_the_token_itself_is_not_among_the_facts(self, tmp_path):
        path = tmp_path / "token"
        path.write_text("hush-hush")
        facts = ray_here.gather_token({"RAY_AUTH_TOKEN_PATH": str(path), "RAY_AUTH_TOKEN": "secret-too"})
        assert facts.num_bytes == 9
        assert "hush" not in repr(facts)
        assert "secret" not in repr(facts)

    @pytest.mark.parametrize(
        ("facts", "finding"),
        [
            (SESSIONS, ("ok", "node.ray_leftovers")),
            (replace(SESSIONS, ended_bytes=2 * GIB), ("warning", "node.ray_leftovers")),
            (replace(SESSIONS, orphans=(4711,)), ("problem", "node.ray_leftovers")),
            (replace(SESSIONS, num_daemons=2), ("note", "node.ray_running")),
        ],
    )
    def test_leftovers_and_running_daemons_are_found(self, facts, finding):
        assert finding in levels(ray_here.check_sessions(facts))


class TestPorts:
    @pytest.mark.parametrize(
        ("listener", "is_needed", "level"),
        [
            (None, True, "ok"),
            (ports.Listener(7, "nginx"), True, "problem"),
            (ports.Listener(None, "another user's program"), False, "warning"),
            (ports.Listener(8, "ray::ProxyActor"), True, "note"),
        ],
    )
    def test_a_port_matters_by_who_has_it_and_whether_it_is_needed(self, listener, is_needed, level):
        facts = ports.PortFacts({8000: "HTTP"}, {8000: listener} if listener else {})
        assert levels(ports.check(facts, is_needed=is_needed)) == {(level, "node.ports")}
