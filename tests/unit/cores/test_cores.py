"""How many threads are worth starting: a container's CPU quota counts, wherever above the process it is set."""

import os
from pathlib import Path

import pytest

from core.cores import usable_cores

AFFINITY = len(os.sched_getaffinity(0))


def cores_with(tmp_path: Path, own: str, quotas: dict[str, str]) -> int:
    """Return the cores of a process in control group `own`, where each group of `quotas` has that `cpu.max`."""
    for group, quota in quotas.items():
        folder = tmp_path / "cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(quota + "\n")
    own_cgroup = tmp_path / "own"
    own_cgroup.write_text(f"1:name=systemd:/\n0::/{own}\n")
    return usable_cores(own_cgroup, tmp_path / "cgroup")


@pytest.mark.parametrize(
    ("own", "quotas"),
    [
        ("", {"": "100000 100000"}),
        ("", {"": "190000 100000"}),
        ("pod/container", {"": "max 100000", "pod": "150000 100000", "pod/container": "max 100000"}),
        ("pod/container", {"pod/container": "20000 100000"}),
    ],
    ids=["one core", "almost two", "set on the pod", "a fifth of one"],
)
def test_a_quota_of_less_than_two_cores_leaves_one_thread(tmp_path, own, quotas):
    assert cores_with(tmp_path, own, quotas) == 1


@pytest.mark.parametrize("quotas", [{}, {"": "max 100000"}, {"": "100000000 100000"}, {"pod": "100000 100000"}])
def test_without_a_quota_that_binds_every_core_of_the_affinity_counts(tmp_path, quotas):
    assert cores_with(tmp_path, "", quotas) == AFFINITY


def test_a_machine_without_control_groups_has_the_cores_of_the_affinity(tmp_path):
    assert usable_cores(tmp_path / "none", tmp_path) == AFFINITY
