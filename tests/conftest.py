"""Fixtures that test folders share."""

import os
import shutil
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.serve_instance import ServeInstance


# A run started in the background of a script ignores Ctrl-C, and so would every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton decides when it is first imported whether kernels are compiled or interpreted; transformers may import it.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def signals_are_kept() -> Iterator[None]:
    """A command called in this process may end by ignoring signals; what later tests start would inherit that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if handler is not None:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def served() -> "Iterator[ServeInstance]":
    """One Ray Serve instance with a gateway, started by the first test that asks for it."""
    # Imported here: Ray takes seconds that most test runs need not spend.
    from tests.support.serve_instance import ServeInstance

    instance = ServeInstance()
    try:
        yield instance
    finally:
        instance.close()
