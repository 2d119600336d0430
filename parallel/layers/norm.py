"""Root-mean-square normalisation (arXiv 1910.07467).

T tokens in step, D model dim.
"""

from torch import Tensor

from parallel.layers.shard import ShardedLayer, Storage


class RMSNorm(ShardedLayer):
    """y = x / sqrt(mean(x^2) + eps) * w over the last dim; the mean is taken in float32. Whole on every rank."""

    def __init__(self, size: int, eps: float, storage: Storage) -> None:
        super().__init__()
        self.weight = storage.parameter(size)
        self.eps = eps
        self._ops = storage.ops

    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        """Add `x_TD` to `residual_TD` (mutates), then return the residual's norm in memory of its own."""
        return self._ops.add_rms_norm(x_TD, residual_TD, self.weight, self.eps)
