"""What a machine of a cluster is told about itself: `/etc/eagleray/node.json`, written before its first boot.

Nothing here is secret: the cluster's token is fetched at boot from where `token_secret_arn` says.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from core.config import Config
from core.errors import InvalidConfig

DEFAULT_PATH = Path("/etc/eagleray/node.json")

INSTANCE_LABEL = "eagleray/instance"
"""Ray label of every node: id of its EC2 instance."""
START_LABEL = "eagleray/start"
"""Ray label of every node: which start of Ray it is. A store that outlives a head takes former ones for alive."""
GROUP_LABEL = "eagleray/group"
"""Ray label of every node that takes work: name of its worker group."""

_BUCKET_AND_KEY = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/.+")


class MemoryStore(Config):
    """The cluster's state lives in the head's memory and is lost with it."""

    kind: Literal["memory"]
    """Always `memory`."""


class RocksdbStore(Config):
    """The cluster's state lives on a volume that outlives the head."""

    kind: Literal["rocksdb"]
    """Always `rocksdb`."""
    volume: str = Field(pattern=r"^(/dev/[\w/]+|vol-[0-9a-f]+)$")
    """The volume: the device name it is attached as (`/dev/sdf`), or its id (`vol-...`), which is never ambiguous."""


class RedisStore(Config):
    """The cluster's state lives in a server that speaks Redis's protocol."""

    kind: Literal["redis"]
    """Always `redis`."""
    address: str = Field(pattern=r"^rediss?://[^\s/]+:\d+$")
    """`rediss://HOST:PORT`; without the second s the connection is not encrypted."""


GcsStore = Annotated[MemoryStore | RocksdbStore | RedisStore, Field(discriminator="kind")]
"""Where the head keeps what Ray's global control store (GCS) knows."""


class WorkerGroup(Config):
    """Machines of one kind, as the head's scaling loop sees them."""

    name: str = Field(min_length=1)
    """Name of the group; its nodes carry it as label `eagleray/group`."""
    autoscaling_group: str = Field(min_length=1)
    """The Auto Scaling group that owns the machines."""
    nodes_per_replica: PositiveInt
    """Machines that one copy of the model takes; the group grows and shrinks by so many."""
    gpus_per_node: NonNegativeInt
    """GPUs of each machine."""
    min_size: NonNegativeInt
    """Fewest machines."""
    max_size: NonNegativeInt
    """Most machines."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size={self.min_size} is more than max_size={self.max_size}")
        return self


class NodeConfig(Config):
    """One machine of a cluster."""

    cluster: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    """Name of the cluster; it also separates clusters that share a Redis."""
    region: str = Field(min_length=1)
    """AWS region of everything named here."""
    role: Literal["head", "worker"]
    """`head`: runs the GCS, the dashboard and the loops. `worker`: joins the head."""
    head_address: str = Field(min_length=1)
    """Private IP address of the head; a replacement keeps it."""
    group: str | None
    """Worker group of this machine; null: a head that takes no work."""
    num_gpus: NonNegativeInt
    """GPUs of this machine; 0: it computes on its CPUs."""
    resources: dict[str, float] = {}
    """Further Ray resources, name to amount."""
    labels: dict[str, str] = {}
    """Ray labels; `eagleray/instance` and `eagleray/group` are added."""
    token_secret_arn: str = Field(min_length=1)
    """Secret that holds the token without which nobody joins or commands the cluster."""
    serve_config: str | None = None
    """Head: what is served, a YAML file at `ssm:/PARAMETER` or `s3://BUCKET/KEY`. Null: nothing is deployed."""
    gcs: GcsStore | None = None
    """Head: where the cluster's state is kept. Workers need none."""
    weights_bucket: str = ""
    """S3 bucket with model weights; empty: there is none."""
    weights_cache: str = "/var/lib/eagleray/weights"
    """Folder for weights; the machine's own NVMe disks are mounted there if it has some."""
    efa: bool = False
    """Whether ranks of several machines talk over the Elastic Fabric Adapter, so that it must work."""
    launch_hook: str | None = None
    """Worker: lifecycle hook of the Auto Scaling group that waits until this machine is of use."""
    autoscaling_group: str | None = None
    """Worker: the Auto Scaling group this machine belongs to."""
    worker_groups: tuple[WorkerGroup, ...] = ()
    """Head: the groups that its scaling loop sizes."""
    interruption_queue_url: str | None = None
    """Head: SQS queue with warnings of machines that AWS is about to take away."""

    @property
    def is_head(self) -> bool:
        """Whether this machine runs the GCS."""
        return self.role == "head"

    @property
    def takes_work(self) -> bool:
        """Whether replicas and ranks may run here."""
        return self.group is not None

    @field_validator("serve_config")
    @classmethod
    def _check_serve_config(cls, value: str | None) -> str | None:
        if value is None or value.startswith("ssm:/") or _BUCKET_AND_KEY.fullmatch(value):
            return value
        raise ValueError("must be ssm:/PARAMETER or s3://BUCKET/KEY")

    @field_validator("weights_cache")
    @classmethod
    def _check_weights_cache(cls, value: str) -> str:
        if not Path(value).is_absolute() or value == "/":
            raise ValueError("must be an absolute path of a folder of its own, e.g. /var/lib/eagleray/weights")
        return value

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if self.is_head and self.gcs is None:
            raise ValueError('a head needs gcs; the simplest is {"kind": "memory"}')
        if not self.is_head and self.group is None:
            raise ValueError("a worker needs group, the name of its worker group")
        if not self.takes_work and self.num_gpus:
            raise ValueError(f"num_gpus={self.num_gpus} on a head without group: set group, or num_gpus to 0")
        if self.launch_hook and not self.autoscaling_group:
            raise ValueError("launch_hook needs autoscaling_group, the Auto Scaling group whose hook it is")
        return self

    @classmethod
    def load(cls, path: Path = DEFAULT_PATH) -> "NodeConfig":
        """Read a node's configuration. Raises InvalidConfig that names the file, the key and the value."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidConfig(
                f"{path}: cannot be read ({error.strerror}); user data writes it at first boot"
            ) from None
        except ValueError as error:
            raise InvalidConfig(f"{path}: not valid JSON: {error}") from None
        return cls.parse(data, str(path))
