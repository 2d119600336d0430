"""The machines that an apply has made, as EC2 tells of them."""

import base64
import gzip
import json
import re
from typing import Any, NamedTuple

_NODE_JSON = re.compile(r"^cat > /etc/eagleray/node\.json <<'(\w+)'\n(.*?)\n\1$", re.DOTALL | re.MULTILINE)


class Instance(NamedTuple):
    """One machine."""

    instance_id: str
    address: str
    instance_type: str
    tags: dict[str, str]
    user_data: str
    """The script, unpacked."""

    @property
    def node(self) -> dict[str, Any]:
        """What the script writes to node.json."""
        return node_json(self.user_data)

    @property
    def metadata(self) -> dict[str, str]:
        """What the metadata service tells it: paths under /latest/meta-data/."""
        tags = {f"tags/instance/{name}": value for name, value in self.tags.items()}
        return {
            "instance-id": self.instance_id,
            "local-ipv4": self.address,
            "instance-type": self.instance_type,
            "tags/instance": "\n".join(self.tags),
            **tags,
        }


def node_json(script: str) -> dict[str, Any]:
    """Return the node.json that a rendered script writes."""
    found = _NODE_JSON.search(script)
    assert found is not None, f"no node.json in:\n{script}"
    return json.loads(found[2])


def running_instances(ec2: Any) -> list[Instance]:
    """Return the machines that run, the head first, then by address."""
    instances = []
    for reservation in ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["running"]}])[
        "Reservations"
    ]:
        for machine in reservation["Instances"]:
            data = ec2.describe_instance_attribute(InstanceId=machine["InstanceId"], Attribute="userData")
            instances.append(
                Instance(
                    machine["InstanceId"],
                    machine["PrivateIpAddress"],
                    machine["InstanceType"],
                    {tag["Key"]: tag["Value"] for tag in machine.get("Tags", [])},
                    _unpack(data["UserData"]["Value"].encode()),
                )
            )
    return sorted(instances, key=lambda instance: (instance.node["role"] != "head", instance.address))


def _unpack(data: bytes) -> str:
    while not data.startswith((b"\x1f\x8b", b"#!")):
        data = base64.b64decode(data, validate=True)
    return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
