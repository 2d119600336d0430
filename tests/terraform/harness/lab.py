"""A laboratory: the machines of an applied example run, on one network with a metadata service and AWS."""

import contextlib
from pathlib import Path
from typing import Self

from tests.terraform.harness.example_cluster import NETWORK, ExampleCluster
from tests.terraform.harness.hosts import Host, make_mount_points
from tests.terraform.harness.lan import METADATA_ADDRESS, Lan
from tests.terraform.harness.metadata_service import MetadataService

_AWS_PORT = 4566


class Lab:
    """A context manager: hosts that are off at first. Nothing of it is left afterwards. Raises CannotMakeHosts."""

    lan: Lan
    metadata: MetadataService
    head: Host
    workers: list[Host]

    def __init__(self, cluster: ExampleCluster, folder: Path) -> None:
        """`folder`: the hosts' disks and logs."""
        self._cluster = cluster
        self._folder = folder
        self._cleanup = contextlib.ExitStack()

    @property
    def hosts(self) -> list[Host]:
        """All, the head first."""
        return [self.head, *self.workers]

    def last_words(self) -> str:
        """Return what the hosts' boots printed last."""
        return "\n".join(host.last_words() for host in self.hosts)

    def __enter__(self) -> Self:
        with self._cleanup:
            self._make()
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _make(self) -> None:
        instances = self._cluster.instances()
        self.lan = self._cleanup.enter_context(Lan(NETWORK))
        self._cluster.aws.answer_at(self.lan.listen(self.lan.router, _AWS_PORT))
        self.metadata = self._cleanup.enter_context(
            MetadataService(self.lan.listen(METADATA_ADDRESS, 80), {one.address: one.metadata for one in instances})
        )
        for made in make_mount_points():
            self._cleanup.callback(made.rmdir)
        environment = self._cluster.aws.environment(f"http://{self.lan.router}:{_AWS_PORT}")
        # Hosts have neither GPUs nor disks of their own. Everything else is as on a machine of AWS.
        environment |= {"EAGLERAY_SKIP_DEVICE_CHECKS": "1"}
        del environment["AWS_EC2_METADATA_DISABLED"]
        names = ["head", *(f"worker{number}" for number in range(1, len(instances)))]
        hosts = [Host(self.lan, *each, self._folder, environment) for each in zip(names, instances, strict=True)]
        for host in hosts:
            self._cleanup.callback(host.power_off)
        self.head, *self.workers = hosts
