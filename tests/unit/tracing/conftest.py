from tests.support.event_loops import run

__all__ = ["run"]
