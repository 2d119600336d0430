"""Safetensors checkpoints: one file, or shards with an index. Headers are parsed and checked here, by hand.

A file is an 8-byte little-endian header length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`, then
the data (https://github.com/huggingface/safetensors, "Format").
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import CheckpointError
from parallel.checkpoint.fields import parse_json_object, read_json_object
from parallel.checkpoint.tensors import TensorInfo, check_tensors, expected_shapes, span
from parallel.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000
"""Limit of the reference implementation."""
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
               "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
_READABLE = ("F32", "BF16", "F16")


class SafetensorsCheckpoint:
    """A folder of config.json and safetensors files. Not thread-safe; keeps each file it reads mapped."""

    def __init__(self, folder: Path) -> None:
        """Read and check every header. Raises CheckpointError, UnsupportedModel."""
        found = _read_shards(folder)
        self._folder = folder
        self._spec = _read_spec(folder, found)
        check_tensors(self._spec, found, folder)
        self._tensors = {name: found[name] for name in expected_shapes(self._spec)}
        _require_readable(self._tensors)
        # The library's handle has no public type.
        self._open_files: dict[Path, Any] = {}

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes."""
        return self._spec

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor the model needs."""
        return self._tensors

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> "Tensor":
        """Return a tensor or a part of it, in the stored dtype. Raises CheckpointError.

        It may be a view of the mapped file: copy it into place, never change it.
        """
        from safetensors import SafetensorError

        info = self._tensors[name]
        parts = [slice(*span(size, part)) for size, part in zip(info.shape, (rows, columns), strict=False)]
        try:
            return self._file(info.file).get_slice(name)[tuple(parts)].contiguous()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{info.file}: tensor {name} cannot be read ({error}); download it again") from None

    def read_quantised(self, name: str, rows: slice | None = None, columns: slice | None = None) -> None:
        """Return None: what is stored in these files is floats."""

    def _file(self, path: Path) -> Any:
        from safetensors import safe_open

        if path not in self._open_files:
            self._open_files[path] = safe_open(str(path), framework="pt", device="cpu")
        return self._open_files[path]


def _read_spec(folder: Path, tensors: Mapping[str, TensorInfo]) -> ModelSpec:
    config = read_json_object(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = read_json_object(generation_path) if generation_path.exists() else None
    embedding = tensors.get("model.embed_tokens.weight")
    if config.get("dtype") is None and config.get("torch_dtype") is None and embedding is not None:
        stored = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(embedding.dtype)
        config = {**config, "dtype": stored}
    return ModelSpec.from_hf_config(config, str(folder / "config.json"), generation)


def _require_readable(tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if info.dtype not in _READABLE:
            raise CheckpointError(
                f"{info.file}: tensor {name} is stored as {info.dtype}; weights must be one of {', '.join(_READABLE)}"
            )


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    """Return every tensor of the folder's safetensors files; the index, if there is one, must agree with them."""
    index_path = folder / INDEX_NAME
    if not index_path.exists():
        return read_header(_only_file(folder))
    placed = _read_index(index_path)
    found: dict[str, TensorInfo] = {}
    for file_name in sorted(set(placed.values())):
        for name, info in read_header(folder / file_name).items():
            if name in found:
                raise CheckpointError(f"{info.file}: tensor {name} is also in {found[name].file.name}; remove one")
            found[name] = info
    for name, file_name in placed.items():
        if name not in found or found[name].file.name != file_name:
            raise CheckpointError(f"{folder / file_name}: tensor {name} is missing, but {INDEX_NAME} says it is there")
    return found


def _only_file(folder: Path) -> Path:
    preferred = folder / "model.safetensors"
    files = [preferred] if preferred.exists() else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"{folder}: holds {len(files)} safetensors files but no {INDEX_NAME}; download it again")
    pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    seen = f" ({pickles[0]} is a pickle, which can run code and is never read)" if pickles else ""
    raise CheckpointError(f"{folder}: holds no safetensors file{seen}; convert the model to safetensors or GGUF")


def _read_index(path: Path) -> dict[str, str]:
    """Return the file name of every tensor."""
    placed = read_json_object(path).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{path}: weight_map is missing or not an object; download it again")
    for name, file_name in placed.items():
        if (
            not isinstance(file_name, str)
            or not file_name.endswith(".safetensors")
            or Path(file_name).name != file_name
        ):
            raise CheckpointError(
                f"{path}: tensor {name} is said to be in {file_name!r}, not a safetensors file beside it"
            )
        if not (path.parent / file_name).exists():
            raise CheckpointError(f"{path.parent / file_name}: missing, but {INDEX_NAME} puts tensor {name} there")
    return placed


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one file after checking that its data is all there. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                raise CheckpointError(f"{path}: only {size} bytes long, not a safetensors file; download it again")
            (length,) = _LENGTH.unpack(start)
            if length > min(size - _LENGTH.size, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path}: announces a header of {length} bytes but is {size} bytes long; it is truncated or damaged"
                )
            header = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path and permissions") from None
    entries = parse_json_object(header, f"{path} header", unique_keys=True)
    entries.pop("__metadata__", None)
    num_data_bytes = size - _LENGTH.size - length
    return {name: _tensor_info(path, name, entry, num_data_bytes) for name, entry in entries.items()}


def _tensor_info(path: Path, name: str, entry: object, num_data_bytes: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            raise CheckpointError(f"{path}: tensor {name} has a damaged header entry; download it again")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{path}: tensor {name} is of unknown dtype {dtype!r}; supported: {', '.join(_READABLE)}")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise CheckpointError(f"{path}: tensor {name} has shape {shape}; sizes are whole and not negative")
    if not 0 <= start <= stop or stop - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise CheckpointError(
            f"{path}: tensor {name} of shape {shape} and dtype {dtype} does not fill its bytes {start} to {stop}"
        )
    if stop > num_data_bytes:
        raise CheckpointError(
            f"{path}: tensor {name} ends at data byte {stop} but the file has {num_data_bytes}; it is truncated,"
            " download it again"
        )
    return TensorInfo(tuple(shape), dtype, path)
