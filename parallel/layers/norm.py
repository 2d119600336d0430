"""Root-mean-square normalisation (arXiv 1910.07467)."""

from torch import Tensor
from torch.nn.functional import rms_norm

from parallel.layers.shard import ShardedLayer, Storage


class RMSNorm(ShardedLayer):
    """y = x / sqrt(mean(x^2) + eps) * w over the last dim; the mean is taken in float32. Whole on every rank."""

    def __init__(self, size: int, eps: float, storage: Storage) -> None:
        super().__init__()
        self.weight = storage.parameter(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return y in memory of its own."""
        return rms_norm(x, self.weight.shape, self.weight, self.eps)
