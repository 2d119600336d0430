"""transformers on the same weights: `generate` on a whole batch, and its continuous batching.

Both are given token ids and asked for a fixed number of greedy tokens, so that every engine does the same work.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM, StoppingCriteria

from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.source import resolve_checkpoint
from parallel.models.spec import ModelSpec


@dataclass(frozen=True)
class Timed:
    """What one batch of requests, sent together, took."""

    duration_s: float
    num_output_tokens: int
    ttft_s: list[float]
    """Per request; in a static batch all first tokens come together."""
    token_ids: list[list[int]]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second over the batch."""
        return self.num_output_tokens / self.duration_s


class TransformersPeer:
    """transformers' Llama with the weights of `source`, read by our reader so that both sides have the same numbers."""

    def __init__(self, source: str, dtype: torch.dtype) -> None:
        checkpoint = open_checkpoint(resolve_checkpoint(source, None))
        config = _llama_config(checkpoint.spec)
        self._model = LlamaForCausalLM(config).to(dtype)
        weights = {name: checkpoint.read(name).to(dtype) for name in checkpoint.tensors}
        missing, unexpected = self._model.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise SystemExit(f"{source}: missing {missing}, unexpected {unexpected}")
        self._model.tie_weights()
        self._model.eval()
        self._manager: Any = None

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Return float32 logits after each token, tokens by vocabulary."""
        with torch.inference_mode():
            return self._model(torch.tensor([token_ids])).logits[0].float()

    def run_static(self, prompts: list[list[int]], num_output: int) -> Timed:
        """Run `generate` on all prompts, which must be equally long, as one batch."""
        ids = torch.tensor(prompts)
        first_token = _FirstToken()
        start = time.perf_counter()
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_greedy(num_output),
                stopping_criteria=[first_token],
            )
        duration_s = time.perf_counter() - start
        new = [row[len(prompts[0]) :] for row in output.tolist()]
        return Timed(duration_s, sum(map(len, new)), [first_token.at - start] * len(prompts), new)

    def run_continuous(self, prompts: list[list[int]], num_output: int) -> Timed:
        """Run transformers' continuous batching over a paged KV cache; its engine thread stays for the next call."""
        manager = self._manager or self._start_manager()
        start = time.perf_counter()
        order = manager.add_requests(prompts, max_new_tokens=num_output, record_timestamps=True)
        answers: dict[str, Any] = {}
        while len(answers) < len(prompts):
            answer = manager.get_result(timeout=600)
            if answer is None or answer.error is not None:
                raise SystemExit(f"transformers' continuous batching failed: {answer.error if answer else 'no answer'}")
            answers[answer.request_id] = answer
        duration_s = time.perf_counter() - start
        in_order = [answers[request_id] for request_id in order]
        new = [answer.generated_tokens for answer in in_order]
        return Timed(duration_s, sum(map(len, new)), [answer.timestamps[0] - start for answer in in_order], new)

    def close(self) -> None:
        """End the engine thread, if there is one."""
        if self._manager is not None:
            self._manager.stop(block=True)
            self._manager = None

    def _start_manager(self) -> Any:
        # Pages hold 256 tokens by default: room for 64 requests of prompt and answer up to that.
        config = ContinuousBatchingConfig(
            num_blocks=64, max_batch_tokens=512, allow_block_sharing=False, auto_switch_to_flash=False
        )
        self._manager = self._model.init_continuous_batching(_greedy(1, eos=-1), continuous_batching_config=config)
        self._manager.start()
        return self._manager


def _llama_config(spec: ModelSpec) -> LlamaConfig:
    if spec.architecture != "LlamaForCausalLM" or spec.rope.scaling != "none":
        raise SystemExit(f"this comparison knows plain Llama models, not {spec.architecture} ({spec.rope.scaling})")
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope.theta},
        max_position_embeddings=spec.max_position_embeddings,
        tie_word_embeddings=spec.tie_word_embeddings,
        attention_bias=spec.qkv_bias,
    )
    config._attn_implementation = "sdpa"
    return config


def _greedy(num_output: int, eos: int | None = None) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=num_output, do_sample=False, eos_token_id=eos, pad_token_id=0)


class _FirstToken(StoppingCriteria):
    """Never stops; remembers when it was first asked, which is after the first token of the batch."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.at = self.at or time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)
