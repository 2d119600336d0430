"""What the engine refuses before it becomes work: requests that are wrong, and requests that could never fit."""

from core.errors import ContextTooLong, InvalidRequest
from engine.request import GenerationRequest
from parallel.models.spec import ModelSpec


class Admission:
    """Checks requests against the model and the KV pool. Immutable, so any thread may use it."""

    def __init__(self, spec: ModelSpec, max_model_len: int, num_blocks: int, block_size: int) -> None:
        self._vocab_size = spec.vocab_size
        self._eos_token_ids = frozenset(spec.eos_token_ids)
        self.max_model_len = max_model_len
        self._num_blocks = num_blocks
        self._block_size = block_size

    def check(self, request: GenerationRequest) -> None:
        """Return if the request can be run to its end. Raises InvalidRequest or ContextTooLong."""
        self._check_tokens(request)
        self._check_sampling(request)
        if request.deadline_s is not None and not request.deadline_s > 0:
            raise InvalidRequest(
                f"deadline_s={request.deadline_s!r} is out of range; use more than 0", param="deadline_s"
            )
        self._check_length(request)

    def max_length(self, request: GenerationRequest) -> int:
        """Return the number of tokens, prompt included, at which the request ends."""
        return min(request.num_prompt_tokens + request.sampling.max_tokens, self.max_model_len)

    def stop_ids(self, request: GenerationRequest) -> frozenset[int]:
        """Return the tokens that end the request."""
        sampling = request.sampling
        eos_token_ids = frozenset[int]() if sampling.ignore_eos else self._eos_token_ids
        return eos_token_ids.union(sampling.stop_token_ids) if sampling.stop_token_ids else eos_token_ids

    def _check_tokens(self, request: GenerationRequest) -> None:
        token_ids, num_prompt = request.token_ids, request.num_prompt_tokens
        if not token_ids:
            raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
        if not 1 <= num_prompt <= len(token_ids):
            raise InvalidRequest(
                f"num_prompt_tokens={num_prompt} is out of range; use 1 to {len(token_ids)}, the number of token_ids",
                param="num_prompt_tokens",
            )
        self._check_in_vocabulary("prompt", min(token_ids), max(token_ids))

    def _check_sampling(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        if sampling.stop_token_ids:
            self._check_in_vocabulary("stop_token_ids", min(sampling.stop_token_ids), max(sampling.stop_token_ids))
        if sampling.logit_bias:
            self._check_in_vocabulary("logit_bias", min(sampling.logit_bias), max(sampling.logit_bias))

    def _check_in_vocabulary(self, param: str, smallest: int, largest: int) -> None:
        if smallest < 0 or largest >= self._vocab_size:
            wrong = smallest if smallest < 0 else largest
            raise InvalidRequest(
                f"token id {wrong} in {param} is out of range; the vocabulary has 0 to {self._vocab_size - 1}",
                param=param,
            )

    def _check_length(self, request: GenerationRequest) -> None:
        num_prompt, max_tokens = request.num_prompt_tokens, request.sampling.max_tokens
        total = num_prompt + max_tokens
        if total > self.max_model_len:
            raise ContextTooLong(
                f"the prompt has {num_prompt} tokens and max_tokens={max_tokens}, together {total}; the context holds "
                f"{self.max_model_len}; shorten the prompt or lower max_tokens",
                param="max_tokens" if num_prompt < self.max_model_len else "prompt",
            )
        # The last token's KV is never written.
        num_blocks = -(-(total - 1) // self._block_size)
        if num_blocks > self._num_blocks:
            raise ContextTooLong(
                f"{total} tokens of prompt and output need {num_blocks} KV blocks of {self._block_size} tokens; the "
                f"pool has {self._num_blocks}; shorten the prompt or lower max_tokens",
                param="max_tokens",
            )
        if len(request.token_ids) >= total:
            raise InvalidRequest(
                f"{len(request.token_ids) - num_prompt} tokens were generated already and max_tokens={max_tokens}; "
                "nothing is left to generate",
                param="max_tokens",
            )
