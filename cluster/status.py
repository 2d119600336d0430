"""What a replica group says about itself; gateways route, `/readyz` and the console show from it."""

from typing import Literal

import msgspec

from core.errors import ErrorInfo
from core.progress import Progress
from engine.rank_place import RankPlace
from parallel.ops.choice import OpChoice

GroupState = Literal["starting", "ready", "restarting", "draining", "failed"]


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A group at one moment. Announced to every gateway when it changes and every two seconds."""

    group_id: str
    """Unique per replica group process; a replaced replica has a new one."""
    model: str
    """Public model name."""
    application: str
    """Serve application (model version) the group belongs to."""
    state: GroupState
    generation: int
    """Of the ranks; grows with every in-place restart."""
    world_size: int
    restarts: dict[str, int] = {}
    """In-place restarts, by the code of the error that each came from."""
    progress: list[Progress] = []
    """Latest per rank, while starting or restarting."""
    error: ErrorInfo | None = None
    """Why the group is restarting or failed."""
    channel: "ChannelAddress | None" = None
    model_source: str = ""
    """Where tokenizer and chat template are read from: local folder, GGUF file, hub id or object store."""
    model_revision: str | None = None
    max_model_len: int = 0
    num_kv_blocks: int = 0
    block_size: int = 0
    ops: list[OpChoice] = []
    """Which tier runs each operation on rank 0."""
    places: list[RankPlace] = []
    """Where each rank runs, once they have joined."""


class ChannelAddress(msgspec.Struct, frozen=True):
    """Where the group's token channel listens. The secret reaches gateways through Ray only, which is authenticated."""

    host: str
    port: int
    secret: bytes
