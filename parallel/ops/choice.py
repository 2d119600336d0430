"""Which tier an operation got, in a form that leaders can read without torch."""

import msgspec


class OpChoice(msgspec.Struct, frozen=True, array_like=True):
    """Which tier runs an operation on a rank."""

    op: str
    """`linear`, `weights`, `attention`, `norm`, `rope`, `activation`, `sampling`, `all_reduce` or `step`."""
    tier: str
    """`torch`, `cpu` or `cuda`."""
    detail: str
    """The kernel, in words: `avx512_bf16, int4`."""
    reason: str = ""
    """Why no faster tier was taken; empty if this is the fastest there is."""
