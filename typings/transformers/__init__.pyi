# Stands in for transformers in type checks only: pyright needs longer for the real package than for all the rest.
# The two modules of ours that use it hide it behind an interface of their own.
from typing import Any

def __getattr__(name: str) -> Any: ...
