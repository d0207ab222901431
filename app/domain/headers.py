"""The safetensors header, read with suspicion: every limit is checked before anything is believed or allocated.

A file is `<8 bytes: header length, little endian><header: JSON><tensor bytes>`. This module sees only the header's
bytes and the file's size. It refuses all that the format forbids, and what the reference reader lets pass: duplicate
names, absurd dimensions, millions of empty tensors.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NoReturn

from app.domain.checkpoints import DTYPE_BYTES, TensorSpec
from app.domain.errors import InvalidHeader

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 200_000
MAX_RANK = 8
MAX_DIMENSION = 2**40
MAX_NAME_BYTES = 512
METADATA_KEY = "__metadata__"

_FIELDS = {"dtype", "shape", "data_offsets"}
_ADVICE = "Write the file again with safetensors' save_file."


def read_header_length(prefix: bytes, *, file: str, file_size: int) -> int:
    """Return the header's length in bytes from the file's first 8 bytes.

    Raises: InvalidHeader when the file is too short, or the length is beyond the limit or the file.
    """
    if len(prefix) < PREFIX_BYTES:
        _refuse(file, f"found {file_size} bytes, expected at least {PREFIX_BYTES}: the file is cut short.")
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        _refuse(
            file,
            f"found a header of {length} bytes, expected at most {MAX_HEADER_BYTES}; is this a safetensors file?",
        )
    if PREFIX_BYTES + length > file_size:
        _refuse(
            file,
            f"found a header of {length} bytes in a file of {file_size}, expected it to fit: the file is cut short.",
        )
    return length


def parse_header(header: bytes, *, file: str, file_size: int) -> list[TensorSpec]:
    """Return the tensors that a header describes, in the order of their bytes; offsets are made absolute in the file.

    header: the JSON alone, without the 8 bytes of its length.
    Raises: InvalidHeader naming the file, the tensor, what was found and what was expected.
    """
    if len(header) > MAX_HEADER_BYTES:
        _refuse(file, f"found a header of {len(header)} bytes, expected at most {MAX_HEADER_BYTES}.")
    document = _load_json(header, file=file)
    _check_metadata(document.pop(METADATA_KEY, {}), file=file)
    data_begin = PREFIX_BYTES + len(header)
    tensors = [_read_tensor(name, entry, file=file, data_begin=data_begin) for name, entry in document.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_layout(tensors, file=file, data_begin=data_begin, file_size=file_size)
    return tensors


def make_header(
    tensors: Sequence[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return prefix and header for (name, dtype, shape, size in bytes), laid out in the order given.

    metadata: default: what marks the weights of a model. The JSON is padded with spaces so that the tensors begin at a
    multiple of 8 bytes.
    """
    document: dict[str, object] = {METADATA_KEY: dict(metadata or {"format": "pt"})}
    begin = 0
    for name, dtype, shape, size in tensors:
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % PREFIX_BYTES)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def _load_json(header: bytes, *, file: str) -> dict[str, Any]:
    n_objects = 0

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal n_objects
        n_objects += 1
        if n_objects > MAX_TENSORS + 2:  # the tensors, the metadata and the document itself
            _refuse(file, f"found more than {MAX_TENSORS} tensors, expected at most that; split the file into shards.")
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
            _refuse(file, f"found the name {_show(twice)} twice, expected each name once. {_ADVICE}")
        return mapping

    if not header.startswith(b"{"):
        _refuse(file, f"found a header that begins with {header[:1]!r}, expected '{{'; is this a safetensors file?")
    try:
        document = json.loads(header.decode(), object_pairs_hook=collect, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a number of thousands of digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        _refuse(file, f"found a header that is not JSON ({reason[:200]}). {_ADVICE}")
    if not isinstance(document, dict):
        _refuse(file, f"found a header that is a JSON {type(document).__name__}, expected an object. {_ADVICE}")
    return document


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _check_metadata(metadata: object, *, file: str) -> None:
    is_text = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not is_text:
        _refuse(file, f"found a {METADATA_KEY} that is no mapping of text to text, expected one. {_ADVICE}")


def _read_tensor(name: str, entry: object, *, file: str, data_begin: int) -> TensorSpec:
    _check_name(name, file=file)
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        _refuse(file, f"found an entry that is not exactly {sorted(_FIELDS)}. {_ADVICE}", tensor=name)
    dtype, shape = entry["dtype"], _read_shape(name, entry["shape"], file=file)
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        _refuse(file, f"found dtype {_show(dtype)}, expected one of {known}; convert the tensor.", tensor=name)
    begin, end = _read_offsets(name, entry["data_offsets"], file=file)
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        _refuse(
            file,
            f"found {end - begin} bytes, expected {expected} for {dtype} {list(shape)}. {_ADVICE}",
            tensor=name,
        )
    return TensorSpec(name=name, dtype=dtype, shape=shape, file=file, begin=data_begin + begin, end=data_begin + end)


def _check_name(name: str, *, file: str) -> None:
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
        _refuse(file, f"found the name {_show(name)}, expected no control characters; rename the tensor.")
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        _refuse(
            file,
            f"found a name of {len(name.encode())} bytes ({_show(name)}), expected 1 to {MAX_NAME_BYTES}; "
            "rename the tensor.",
        )


def _read_shape(name: str, shape: object, *, file: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        _refuse(file, f"found shape {_show(shape)}, expected a list of whole numbers >= 0. {_ADVICE}", tensor=name)
    if len(shape) > MAX_RANK:
        _refuse(file, f"found {len(shape)} dimensions, expected at most {MAX_RANK}; reshape the tensor.", tensor=name)
    if any(size > MAX_DIMENSION for size in shape):
        _refuse(file, f"found shape {_show(shape)}, expected no dimension above {MAX_DIMENSION}.", tensor=name)
    return tuple(shape)


def _read_offsets(name: str, offsets: object, *, file: str) -> tuple[int, int]:
    is_pair = isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(offset) for offset in offsets)
    if not is_pair or not isinstance(offsets, list) or offsets[0] > offsets[1]:
        _refuse(
            file,
            f"found data_offsets {_show(offsets)}, expected [begin, end] with 0 <= begin <= end. {_ADVICE}",
            tensor=name,
        )
    return offsets[0], offsets[1]


def _check_layout(tensors: Sequence[TensorSpec], *, file: str, data_begin: int, file_size: int) -> None:
    position = data_begin
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            _refuse(
                file,
                f"found it at byte {tensor.begin}, which {what}; expected byte {position}. {_ADVICE}",
                tensor=tensor.name,
            )
        if tensor.end > file_size:
            _refuse(
                file,
                f"found that it ends at byte {tensor.end} of a file of {file_size} bytes; "
                "the file is cut short: copy it again.",
                tensor=tensor.name,
            )
        position = tensor.end
    if position != file_size:
        _refuse(
            file,
            f"found {file_size - position} bytes after the last tensor, expected none. {_ADVICE}",
            tensor=tensors[-1].name if tensors else None,
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _show(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:117]}…"


def _refuse(file: str, what: str, *, tensor: str | None = None) -> NoReturn:
    where = f"{file}, tensor {_show(tensor)}" if tensor is not None else file
    raise InvalidHeader(f"{where}: {what}")
