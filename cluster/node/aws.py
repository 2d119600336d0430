"""AWS clients, made when first used: a machine outside AWS needs no boto3.

Endpoint and credentials come from the environment variables that every AWS SDK knows (`AWS_ENDPOINT_URL`, ...).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from cluster.node.errors import BootFailed, NotYet

T = TypeVar("T")

_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"})
_MISSING = frozenset({"ResourceNotFoundException", "ParameterNotFound", "NoSuchKey", "NoSuchBucket", "404"})


def aws_client(service: str, region: str) -> Any:
    """Return boto3's client of a service. Raises BootFailed if boto3 is not installed."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise BootFailed(
            f"boto3 is not installed, so {service} cannot be asked; install it: pip install 'eagleray[aws]'"
        ) from None
    # Short: who asks also asks again, with pauses that a stop ends.
    settings = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 3})
    return boto3.client(service, region_name=region, config=settings)


def ask_aws(what: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; `what` names it in messages: `secret arn:...`.

    Raises NotYet, also for what is missing or refused: what creates it, and permissions of a new role, may come after
    the machine.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        return call()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _MISSING:
            raise NotYet(f"{what} does not exist ({code}); create it or correct its name in node.json") from None
        if code in _DENIED:
            raise NotYet(f"{what} is refused to this machine ({code}); allow it in the role of the machine") from None
        raise NotYet(f"{what}: {error}") from None
    except (BotoCoreError, ResponseParserError) as error:
        raise NotYet(f"{what}: {error}; are there credentials, and a route (NAT or endpoint) to AWS?") from None
