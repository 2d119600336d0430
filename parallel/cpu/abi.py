"""kernels/eagle.h as ctypes sees it: the same structs and calls, in the same order.

Data pointers are plain addresses (`tensor.data_ptr()`); whoever fills a struct keeps the memory behind it alive.
"""

from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)
from enum import IntEnum

ABI_VERSION = 1
PANEL = 16
"""Outputs of a matrix that are packed side by side."""


class Format(IntEnum):
    """How a matrix is kept."""

    BF16 = 0
    INT8 = 1
    INT4 = 2


class KVFormat(IntEnum):
    """How keys and values are kept."""

    BF16 = 0
    INT8 = 1


STEP_PARTS = ("embed", "norm", "qkv", "rotate", "attend", "o", "gate_up", "down", "head")
"""enum eg_part, in order."""


class Status(IntEnum):
    """How a call that can fail ended."""

    OK = 0
    PEER_DIED = 1
    TIMED_OUT = 2


class Matrix(Structure):
    """eg_matrix."""

    _fields_ = [
        ("format", c_int32),
        ("num_outputs", c_int32),
        ("num_inputs", c_int32),
        ("unused", c_int32),
        ("packed", c_void_p),
        ("bias", c_void_p),
    ]


class KV(Structure):
    """eg_kv."""

    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
    ]


class Heads(Structure):
    """eg_heads."""

    _fields_ = [
        ("num_query_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("kv_format", c_int32),
        ("scale", c_float),
        ("eps", c_float),
        ("unused", c_int32),
    ]


class Batch(Structure):
    """eg_batch."""

    _fields_ = [
        ("num_tokens", c_int64),
        ("num_rows", c_int64),
        ("num_sampled", c_int64),
        ("table_stride", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("query_lens", c_void_p),
        ("context_lens", c_void_p),
        ("block_table", c_void_p),
        ("last_tokens", c_void_p),
    ]


class Layer(Structure):
    """eg_layer."""

    _fields_ = [
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", Matrix),
        ("o", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("kv", KV),
    ]


class Model(Structure):
    """eg_model."""

    _fields_ = [
        ("hidden_size", c_int32),
        ("ffn_size", c_int32),
        ("num_layers", c_int32),
        ("vocab_first", c_int32),
        ("eps", c_float),
        ("unused", c_int32),
        ("heads", Heads),
        ("frequencies", c_void_p),
        ("final_norm", c_void_p),
        ("embedding", Matrix),
        ("head", Matrix),
        ("layers", POINTER(Layer)),
        ("group", c_void_p),
    ]


class Draws(Structure):
    """eg_draws."""

    _fields_ = [
        ("num_draws", c_int64),
        ("rows", c_void_p),
        ("uniform", c_void_p),
        ("temperature", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
    ]


_MATRIX, _HEADS, _KV, _BATCH = POINTER(Matrix), POINTER(Heads), POINTER(KV), POINTER(Batch)
_THREADS = _DATA = _GROUP = _WORKSPACE = _PLAN = _PULSE = c_void_p

FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "eg_abi_version": (c_int, ()),
    "eg_level": (c_char_p, ()),
    "eg_enable": (c_int, ()),
    "eg_threads_start": (_THREADS, (c_int,)),
    "eg_threads_stop": (None, (_THREADS,)),
    "eg_threads_limit": (None, (_THREADS, c_int)),
    "eg_packed_bytes": (c_size_t, (c_int32, c_int32, c_int32)),
    "eg_pack_bf16": (None, (_MATRIX, c_int32, c_int32, _DATA)),
    "eg_pack_int8": (None, (_MATRIX, c_int32, c_int32, _DATA, _DATA)),
    "eg_pack_int4": (None, (_MATRIX, c_int32, c_int32, _DATA, _DATA, _DATA)),
    "eg_matmul": (None, (_THREADS, _MATRIX, _DATA, c_int64, _DATA)),
    "eg_embed": (None, (_THREADS, _MATRIX, _DATA, c_int64, _DATA)),
    "eg_rms_norm": (None, (_THREADS, _DATA, _DATA, c_float, c_int64, c_int64, _DATA)),
    "eg_add_rms_norm": (None, (_THREADS, _DATA, _DATA, _DATA, c_float, c_int64, c_int64, _DATA)),
    "eg_silu_mul": (None, (_THREADS, _DATA, c_int64, c_int64, _DATA)),
    "eg_rotation": (None, (_THREADS, _BATCH, _DATA, c_int32, _DATA)),
    "eg_rotate_and_write": (None, (_THREADS, _HEADS, _KV, _BATCH, _DATA, _DATA, _DATA, _DATA)),
    "eg_attention_plan_new": (_PLAN, ()),
    "eg_attention_plan_free": (None, (_PLAN,)),
    "eg_plan_attention": (None, (_PLAN, _THREADS, _HEADS, _BATCH)),
    "eg_attend": (None, (_THREADS, _HEADS, _KV, _PLAN, _DATA, _DATA)),
    "eg_group_bytes": (c_size_t, (c_int32,)),
    "eg_group_open": (c_int, (c_int, c_int32, c_int32, POINTER(c_int32), c_double, POINTER(_GROUP))),
    "eg_group_close": (None, (_GROUP,)),
    "eg_group_missing": (c_int32, (_GROUP,)),
    "eg_all_reduce": (c_int, (_GROUP, _DATA, c_int64)),
    "eg_all_gather": (c_int, (_GROUP, _DATA, c_int64, _DATA)),
    "eg_barrier": (c_int, (_GROUP,)),
    "eg_pulse_start": (c_int, (c_int, c_double, POINTER(_PULSE))),
    "eg_pulse_say": (c_int, (_PULSE, c_char_p, c_uint32)),
    "eg_pulse_stop": (None, (_PULSE,)),
    "eg_workspace_new": (_WORKSPACE, ()),
    "eg_workspace_free": (None, (_WORKSPACE,)),
    "eg_step_times": (None, (_WORKSPACE, _DATA)),
    "eg_step": (c_int, (_THREADS, _WORKSPACE, POINTER(Model), _BATCH, _DATA)),
    "eg_best": (None, (_THREADS, _DATA, c_int64, c_int64, _DATA, _DATA, _DATA)),
    "eg_top": (None, (_THREADS, _DATA, c_int64, c_int64, c_int64, _DATA, _DATA)),
    "eg_draw": (None, (_THREADS, _DATA, c_int64, _DATA, POINTER(Draws), _DATA)),
}
"""Result and arguments of every call."""
