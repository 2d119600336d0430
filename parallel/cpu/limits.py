"""Which models the CPU kernels can run. No torch: the leader asks as well, before it divides memory."""


def cpu_obstacle(dtype: str, kv_dtype: str, head_dim: int, block_size: int) -> str:
    """Return why the kernels cannot run a model, empty if they can."""
    if dtype != "bfloat16":
        return f"the CPU kernels multiply bfloat16 and narrower, not {dtype}"
    if kv_dtype not in ("bfloat16", "int8"):
        return f"the CPU kernels keep keys and values in bfloat16 or int8, not {kv_dtype}"
    if head_dim % 32 or head_dim > 256:
        return f"the CPU kernels need head_dim to be a multiple of 32 up to 256, not {head_dim}"
    if block_size % 16:
        return f"the CPU kernels need cache.block_size to be a multiple of 16, not {block_size}"
    return ""
