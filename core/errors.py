"""Every error of eagleray, by whose fault it is and what to do next.

EaglerayError
+ RequestError              the caller's fault, never retried
|  + InvalidRequest         a field has a wrong type or value
|  + ContextTooLong         prompt + max_tokens do not fit the model's context
|  + ModelNotFound          no such model is served
|  + Unauthorized           no or wrong API key
|  + PayloadTooLarge        the body is over the limit
+ Overloaded                ours, temporary; carries retry_after_s
|  + QueueFull              the group refuses more work now
|  + Draining               the group finishes what it has and accepts nothing
|  + NotReady               the group is still loading or is being restarted
|  + DeadlineExceeded       the request's deadline passed before it finished
+ ReplicaFailed             this copy of the model broke, another may serve it
|  + RankDied               a rank's process ended or its connection broke
|  + StepTimeout            a step took longer than its deadline
|  + OutOfMemory            a rank ran out of memory
+ RequestQuarantined        replica groups died of this request; it is not tried again
+ StartupError              the configuration cannot work; nothing is served
   + InvalidConfig          a key or value is wrong
   + Unshardable            the model cannot be split over that many ranks
   + CheckpointError        missing, extra, mis-shaped or unreadable tensors or files
   + UnsupportedModel       an architecture, feature or file type that is not implemented
   + DoesNotFit             weights, KV blocks and activations exceed the memory
   + PlacementImpossible    the cluster has no room of that shape

HTTP status codes live in `deployments`. Errors cross sockets as `ErrorInfo`, never as pickles.
"""

import msgspec


class EaglerayError(Exception):
    """Root. `code` is the stable name used on sockets, in OpenAI error bodies and in metrics."""

    code = "internal_error"

    def __init__(self, message: str, *, retry_after_s: float | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param


class RequestError(EaglerayError):
    """The caller's fault; the same request will fail again."""

    code = "invalid_request"


class InvalidRequest(RequestError):
    """A field has a wrong type or value; `param` names it."""


class ContextTooLong(RequestError):
    """Prompt and output do not fit the model's context."""

    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    """No model of that name is served."""

    code = "model_not_found"


class Unauthorized(RequestError):
    """No API key, or a wrong one."""

    code = "invalid_api_key"


class PayloadTooLarge(RequestError):
    """The request body is over the limit."""

    code = "payload_too_large"


class Overloaded(EaglerayError):
    """Ours and temporary: the same request may succeed after `retry_after_s`."""

    code = "overloaded"


class QueueFull(Overloaded):
    """The group has as much waiting work as it may hold."""

    code = "queue_full"


class Draining(Overloaded):
    """The group is finishing its streams and accepts nothing new."""

    code = "draining"


class NotReady(Overloaded):
    """The group is loading, or is being restarted."""

    code = "not_ready"


class DeadlineExceeded(Overloaded):
    """The request's own deadline passed."""

    code = "deadline_exceeded"


class ReplicaFailed(EaglerayError):
    """This copy of the model broke; another copy may serve the request."""

    code = "replica_failed"


class RankDied(ReplicaFailed):
    """A rank's process ended or its connection broke."""

    code = "rank_died"


class StepTimeout(ReplicaFailed):
    """A step did not return within its deadline."""

    code = "step_timeout"


class OutOfMemory(ReplicaFailed):
    """A rank ran out of memory during a step."""

    code = "out_of_memory"


class RequestQuarantined(EaglerayError):
    """Replica groups kept dying under this request, so no other one is risked."""

    code = "request_quarantined"


class StartupError(EaglerayError):
    """The configuration cannot work; nothing is served, exit code 2."""

    code = "startup_error"


class InvalidConfig(StartupError):
    """A configuration key or value is wrong."""

    code = "invalid_config"


class Unshardable(StartupError):
    """The model cannot be split over that many ranks; the message names sizes that work."""

    code = "unshardable"


class CheckpointError(StartupError):
    """A checkpoint file or tensor is missing, extra, mis-shaped or unreadable; the message names it."""

    code = "checkpoint_error"


class UnsupportedModel(StartupError):
    """The architecture, feature or file type is not implemented."""

    code = "unsupported_model"


class DoesNotFit(StartupError):
    """Weights, KV blocks and activations exceed the memory; the message carries the numbers."""

    code = "does_not_fit"


class PlacementImpossible(StartupError):
    """The cluster has no room of the asked shape."""

    code = "placement_impossible"


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """An error as it crosses a socket."""

    code: str
    message: str
    retry_after_s: float | None = None
    param: str | None = None

    @classmethod
    def of(cls, error: EaglerayError) -> "ErrorInfo":
        """Return what the other side needs to rebuild `error`."""
        return cls(error.code, error.message, error.retry_after_s, error.param)

    def to_error(self) -> EaglerayError:
        """Return the error of the class that owns `code`; an unknown code becomes the root class."""
        kind = _CLASS_OF_CODE.get(self.code, EaglerayError)
        return kind(self.message, retry_after_s=self.retry_after_s, param=self.param)


def _classes(root: type[EaglerayError]) -> list[type[EaglerayError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _classes(child))]


# First definition wins, so `invalid_request` maps to RequestError's most general class.
_CLASS_OF_CODE: dict[str, type[EaglerayError]] = {kind.code: kind for kind in reversed(_classes(EaglerayError))}
