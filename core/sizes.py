"""Sizes as people read them."""


def show_bytes(count: int) -> str:
    """Return a size for people: `1.5 GiB`, `64 MiB`."""
    return f"{count / 2**30:.2f} GiB" if abs(count) >= 2**30 else f"{count / 2**20:.1f} MiB"
