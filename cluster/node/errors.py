"""How becoming a node of a cluster fails."""

from core.errors import StartupError


class BootFailed(StartupError):
    """This machine cannot become a node; the message says what failed, the value, and what to do."""

    code = "boot_failed"


class NotYet(Exception):
    """What a step waits for is not there yet, and may come; the message says what."""


class StopRequested(Exception):
    """The node was told to stop while a step waited."""
