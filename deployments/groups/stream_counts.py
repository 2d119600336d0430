"""What became of a gateway's streams; counted where it happens, shown by the gateway's metrics."""

from dataclasses import dataclass


@dataclass
class StreamCounts:
    """The streams of one model since the gateway started."""

    num_retries: int = 0
    """Sent to another group before the first token."""
    num_resumes: int = 0
    """Carried to another group after it."""
    resume_s: float = 0.0
    """Time between the break of a stream or request and its acceptance by another group, over both."""
    num_held: int = 0
    """Requests and streams that had to wait for a group."""
    num_given_up: int = 0
    """Broken streams for which no group was found in time."""
    num_quarantined: int = 0
    """Requests refused or given up because groups die of them."""
