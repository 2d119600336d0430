"""Who this machine is, asked of the instance metadata service: version 2 alone, which forged requests do not get."""

import os
import urllib.error
import urllib.request
from typing import NamedTuple

from cluster.node.errors import NotYet

_DEFAULT_ENDPOINT = "http://169.254.169.254"
_TOKEN_LIFE_S = 21600


class Identity(NamedTuple):
    """Which machine of the cluster this is."""

    instance_id: str
    address: str
    """Its private IP address."""


class InstanceMetadata:
    """Client of the metadata service; holds a session token and renews it when it is refused."""

    def __init__(self, endpoint: str | None = None, timeout_s: float = 2.0) -> None:
        """`endpoint`: `AWS_EC2_METADATA_SERVICE_ENDPOINT` if not given, else the address of every EC2 machine."""
        chosen = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _DEFAULT_ENDPOINT
        self.endpoint = chosen.rstrip("/")
        self._timeout_s = timeout_s
        self._token: str | None = None
        # No proxy: the answer depends on which machine asks.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> str | None:
        """Return the value at `path` under `/latest/meta-data/`, None if there is none now. Raises NotYet."""
        try:
            return self._get(path)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise NotYet(f"{self.endpoint} answers {error.code} to {path}") from None
        # The token has expired, or the machine woke up as another one.
        self._token = None
        try:
            return self._get(path)
        except urllib.error.HTTPError as error:
            raise NotYet(f"{self.endpoint} answers {error.code} to {path} with a new token") from None

    def identify(self) -> Identity:
        """Return which machine this is. Raises NotYet."""
        return Identity(self._require("instance-id"), self._require("local-ipv4"))

    def _require(self, path: str) -> str:
        value = self.get(path)
        if not value:
            raise NotYet(f"{self.endpoint} knows no {path}; is this an EC2 instance?")
        return value

    def _get(self, path: str) -> str | None:
        if self._token is None:
            self._token = self._ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)})
        try:
            return self._ask("GET", f"meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self.endpoint}/latest/{path}", method=method, headers=headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise NotYet(
                f"the metadata service at {self.endpoint} does not answer ({reason}); is this an EC2 instance whose "
                "metadata options allow IMDSv2?"
            ) from None
