"""One loader for every model: it asks each layer what it holds and reads no more than that."""

from collections.abc import Callable

from parallel.checkpoint.reader import Checkpoint
from parallel.models.decoder import CausalLM


def load_weights(model: CausalLM, checkpoint: Checkpoint, on_progress: Callable[[int, int, str], None]) -> None:
    """Fill every parameter with this rank's slice of the checkpoint; mutates `model`.

    `on_progress(done, total, detail)` gets bytes of this rank's weights and the file being read. Raises CheckpointError.
    """
    raise NotImplementedError
