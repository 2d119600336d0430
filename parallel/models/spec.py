"""What a model is made of: read once from config.json or GGUF metadata, then trusted everywhere. No torch."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.errors import CheckpointError, UnsupportedModel
from parallel.checkpoint.fields import Fields
from parallel.checkpoint.remote_code import refuse_remote_code

RopeScaling = Literal["none", "linear", "llama3", "factors"]

_MAX_SIZE = 2**24
"""No width, length or vocabulary of a transformer comes near it; more is a damaged file."""
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding. Use `inverse_frequencies`; the fields say where they come from."""

    theta: float = 10000.0
    scaling: RopeScaling = "none"
    factor: float = 1.0
    """linear: positions are divided by it. llama3: the slow frequencies are."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    """llama3 only, as the two factors above (Llama 3.1 reference code, `apply_scaling`)."""
    factors: tuple[float, ...] = ()
    """`factors` only: divisor of each of the head_dim / 2 frequencies, carried by GGUF as `rope_freqs.weight`."""

    def inverse_frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """Return head_dim / 2 angles per position; the angle of pair i at position p is p times element i."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = (1.0 / np.power(np.float32(self.theta), exponents)).astype(np.float32)
        return (frequencies / self._divisors(frequencies)).astype(np.float32)

    def _divisors(self, frequencies: NDArray[np.float32]) -> NDArray[np.float32] | float:
        if self.scaling == "factors":
            return np.asarray(self.factors, dtype=np.float32)
        if self.scaling == "llama3":
            return self._llama3_divisors(frequencies)
        return self.factor

    def _llama3_divisors(self, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
        # Turns that a pair makes over the original context: fast pairs stay, slow ones are slowed, between is blended.
        turns = self.original_max_position_embeddings * frequencies / (2 * np.pi)
        share_kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share_kept = np.clip(share_kept, 0, 1)
        return (1 / ((1 - share_kept) / self.factor + share_kept)).astype(np.float32)


@dataclass(frozen=True)
class ModelSpec:
    """The sizes and switches of one decoder-only model, in Hugging Face's terms."""

    architecture: str
    """LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    """Rows of the embedding; may be more than the tokenizer knows."""
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeSpec
    tie_word_embeddings: bool
    """The LM head is the embedding; there is no lm_head.weight."""
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMS norm over head_dim of every query and key head, before rotation (Qwen3)."""
    sliding_window: int | None
    """Tokens that some layer can look back on, itself included; None when every layer sees everything."""
    dtype: str
    """float32, bfloat16 or float16: what the weights are meant to run in."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Tokens that end a text, sorted; config.json and generation_config.json together."""

    @property
    def max_context(self) -> int:
        """Longest prompt + output that is computed exactly.

        Attention here always sees the whole context, which equals a sliding window as long as the context is no longer
        than the window. So an active window limits the context.
        """
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @classmethod
    def from_hf_config(
        cls, config: dict[str, object], where: str, generation_config: dict[str, object] | None = None
    ) -> "ModelSpec":
        """Build from config.json (as transformers 4 or 5 writes it) and, if there is one, generation_config.json.

        Raises UnsupportedModel, or CheckpointError naming `where` and the field.
        """
        fields = Fields(config, where)
        family = _family(fields)
        hidden_size = _size(fields, "hidden_size")
        num_heads = _size(fields, "num_attention_heads")
        num_layers = fields.integer("num_hidden_layers", most=4096)
        has_bias = family.reads_attention_bias and fields.flag("attention_bias")
        _require_plain(fields)
        spec = cls(
            architecture=family.architecture,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=fields.integer_or_none("num_key_value_heads", most=_MAX_SIZE) or num_heads,
            head_dim=_head_dim(fields, family, hidden_size, num_heads),
            intermediate_size=_size(fields, "intermediate_size"),
            vocab_size=_size(fields, "vocab_size"),
            max_position_embeddings=_size(fields, "max_position_embeddings"),
            rms_norm_eps=fields.number_or_none("rms_norm_eps", above=0, most=1) or 1e-6,
            rope=_rope(fields),
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            qkv_bias=family.has_qkv_bias or has_bias,
            o_bias=has_bias,
            mlp_bias=family.architecture == "LlamaForCausalLM" and fields.flag("mlp_bias"),
            qk_norm=family.has_qk_norm,
            sliding_window=_sliding_window(fields, family, num_layers),
            dtype=_dtype(fields),
            bos_token_id=fields.integer_or_none("bos_token_id", least=0),
            eos_token_ids=_eos_token_ids(fields, generation_config),
        )
        return spec.checked(where)

    def checked(self, where: str) -> "ModelSpec":
        """Return self when the sizes agree with each other. Raises CheckpointError naming `where` and both fields."""
        _agree(self.num_heads % self.num_kv_heads == 0, where, "num_attention_heads", self.num_heads,
               f"a multiple of num_key_value_heads={self.num_kv_heads}")  # fmt: skip
        _agree(self.head_dim % 2 == 0, where, "head_dim", self.head_dim, "even, which rotary embedding needs")
        for token_id in self.eos_token_ids:
            _agree(token_id < self.vocab_size, where, "eos_token_id", token_id, f"under vocab_size={self.vocab_size}")
        if self.rope.scaling == "factors":
            num = len(self.rope.factors)
            _agree(num == self.head_dim // 2, where, "rope factors", num, f"head_dim / 2 = {self.head_dim // 2} many")
        return self


class _Family(NamedTuple):
    """How one architecture differs from the common shape."""

    architecture: str
    has_qkv_bias: bool = False
    reads_attention_bias: bool = False
    has_qk_norm: bool = False
    has_window_switch: bool = False
    """The window counts only if `use_sliding_window` is true; without a switch it counts whenever it is set."""


FAMILIES = {
    family.architecture: family
    for family in (
        _Family("LlamaForCausalLM", reads_attention_bias=True),
        _Family("MistralForCausalLM"),
        _Family("Qwen2ForCausalLM", has_qkv_bias=True, has_window_switch=True),
        _Family("Qwen3ForCausalLM", reads_attention_bias=True, has_qk_norm=True, has_window_switch=True),
    )
}
"""The architectures that are implemented."""


def _family(fields: Fields) -> _Family:
    refuse_remote_code(fields)
    names = fields.texts("architectures")
    if len(names) != 1:
        raise CheckpointError(
            f"{fields.where}: architectures={list(names)} must name one; supported: {', '.join(FAMILIES)}"
        )
    if names[0] not in FAMILIES:
        raise UnsupportedModel(
            f"{fields.where}: architecture {names[0]!r} is not implemented; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[names[0]]


def _size(fields: Fields, name: str) -> int:
    return fields.integer(name, most=_MAX_SIZE)


def _require_plain(fields: Fields) -> None:
    if quantization := fields.nested("quantization_config"):
        method = quantization.text_or_none("quant_method") or "unnamed"
        raise UnsupportedModel(
            f"{fields.where}: quantization_config of method {method!r} is not implemented; use an unquantised"
            " safetensors checkpoint or a GGUF file"
        )
    activation = fields.text_or_none("hidden_act")
    if activation not in (None, "silu", "swish"):
        raise UnsupportedModel(f"{fields.where}: hidden_act={activation!r} is not implemented; only 'silu' is")


def _head_dim(fields: Fields, family: _Family, hidden_size: int, num_heads: int) -> int:
    head_dim = fields.integer_or_none("head_dim", most=_MAX_SIZE)
    if head_dim is not None:
        return head_dim
    if family.has_qk_norm:
        raise fields.missing("head_dim")
    if hidden_size % num_heads:
        raise CheckpointError(
            f"{fields.where}: hidden_size={hidden_size} is not a multiple of num_attention_heads={num_heads}"
            " and there is no head_dim; correct the file"
        )
    return hidden_size // num_heads


def _rope(fields: Fields) -> RopeSpec:
    # transformers 5 writes all of it into rope_parameters; 4 wrote rope_theta beside an optional rope_scaling.
    scaling = fields.nested("rope_parameters") or fields.nested("rope_scaling") or Fields({}, fields.where)
    theta = _theta(scaling) or _theta(fields) or 10000.0
    kind = scaling.text_or_none("rope_type") or scaling.text_or_none("type") or "default"
    rotated = [holder.number_or_none("partial_rotary_factor", above=0, most=1) for holder in (scaling, fields)]
    if any(share not in (None, 1.0) for share in rotated):
        raise UnsupportedModel(f"{fields.where}: partial_rotary_factor is not implemented; whole heads are rotated")
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", factor=scaling.number("factor", above=0, most=1e6))
    if kind == "llama3":
        return _llama3(scaling, theta)
    raise UnsupportedModel(
        f"{scaling.where}: rope_type={kind!r} is not implemented; supported: default, linear, llama3"
    )


def _theta(fields: Fields) -> float | None:
    return fields.number_or_none("rope_theta", above=0, most=1e12)


def _llama3(scaling: Fields, theta: float) -> RopeSpec:
    low = scaling.number("low_freq_factor", above=0, most=1e6)
    high = scaling.number("high_freq_factor", above=0, most=1e6)
    _agree(low < high, scaling.where, "low_freq_factor", low, f"under high_freq_factor={high}")
    return RopeSpec(
        theta,
        "llama3",
        factor=scaling.number("factor", above=0, most=1e6),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=_size(scaling, "original_max_position_embeddings"),
    )


def _sliding_window(fields: Fields, family: _Family, num_layers: int) -> int | None:
    window = fields.integer_or_none("sliding_window", most=2**31 - 1)
    if family.architecture == "LlamaForCausalLM" or (
        family.has_window_switch and not fields.flag("use_sliding_window")
    ):
        return None
    layer_types = fields.texts("layer_types")
    if layer_types:
        return window if "sliding_attention" in layer_types else None
    if family.has_window_switch:
        num_full = fields.integer_or_none("max_window_layers", least=0, most=4096) or 0
        return window if num_full < num_layers else None
    return window


def _dtype(fields: Fields) -> str:
    name = fields.text_or_none("dtype") or fields.text_or_none("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise UnsupportedModel(f"{fields.where}: dtype={name!r} is not implemented; supported: {', '.join(_DTYPES)}")
    return name


def _eos_token_ids(fields: Fields, generation_config: dict[str, object] | None) -> tuple[int, ...]:
    generation = Fields(generation_config or {}, fields.where.replace("config.json", "generation_config.json"))
    return tuple(sorted({*fields.integers("eos_token_id"), *generation.integers("eos_token_id")}))


def _agree(is_ok: bool, where: str, name: str, value: object, wanted: str) -> None:
    if not is_ok:
        raise CheckpointError(f"{where}: {name}={value} is not {wanted}; correct the file")
