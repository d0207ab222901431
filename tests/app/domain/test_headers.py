"""The header parser: what it reads, it reads as the safetensors library does; what it refuses, it names."""

import json
import struct
from math import prod
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from app.domain.checkpoints import DTYPE_BYTES, TensorSpec
from app.domain.errors import InvalidHeader
from app.domain.headers import MAX_HEADER_BYTES, make_header, parse_header, read_header_length

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def parse(document: object, *, data_bytes: int = 8, header: bytes | None = None) -> list[TensorSpec]:
    text = json.dumps(document).encode() if header is None else header
    return parse_header(text, file="model.safetensors", file_size=8 + len(text) + data_bytes)


def entry(**changes: Any) -> dict[str, Any]:
    return {**F32, **changes}


def test_offsets_are_absolute_and_tensors_come_in_the_order_of_their_bytes() -> None:
    header = json.dumps({"b": entry(data_offsets=[8, 16]), "a": F32, "__metadata__": {"format": "pt"}}).encode()
    first, second = parse({}, header=header, data_bytes=16)
    begin = 8 + len(header)
    assert (first.name, first.begin, first.end, first.file) == ("a", begin, begin + 8, "model.safetensors")
    assert (second.name, second.begin, second.end, second.shape) == ("b", begin + 8, begin + 16, (2,))


def test_scalars_empty_tensors_and_empty_files_are_read() -> None:
    scalar, empty = parse(
        {"s": entry(shape=[], data_offsets=[0, 4]), "z": entry(shape=[0, 3], data_offsets=[4, 4])}, data_bytes=4
    )
    assert (scalar.n_elements, empty.n_elements) == (1, 0)
    assert parse({}, data_bytes=0) == []


def test_trailing_spaces_are_padding() -> None:
    assert parse({}, header=json.dumps({"a": F32}).encode() + b"   ")[0].name == "a"


# What safetensors 0.8.0 was seen to refuse, and what it was seen to let pass.
REFUSED: dict[str, tuple[object, int, str]] = {
    "hole": ({"a": F32, "b": entry(data_offsets=[12, 20])}, 20, "'b': found it at byte .* leaves a gap"),
    "hole at the front": ({"a": entry(data_offsets=[4, 12])}, 12, "'a'.*leaves a gap"),
    "overlap": ({"a": F32, "b": entry(data_offsets=[4, 12])}, 12, "'b'.*overlaps"),
    "same bytes twice": ({"a": F32, "b": F32}, 8, "'b'.*overlaps"),
    "trailing bytes": ({"a": F32}, 9, "tensor 'a': found 1 bytes after the last tensor"),
    "cut short": ({"a": F32}, 7, "'a'.*cut short"),
    "size is not dtype x shape": ({"a": entry(shape=[3])}, 8, "'a': found 8 bytes, expected 12 for F32"),
    "shape overflow": ({"a": entry(shape=[2**40, 2**40, 2**40])}, 8, "'a': found 8 bytes, expected"),
    "negative dimension": ({"a": entry(shape=[-2])}, 8, "'a': found shape .* whole numbers >= 0"),
    "fraction": ({"a": entry(shape=[2.0])}, 8, "'a': found shape"),
    "true is no number": ({"a": entry(shape=[True, 2])}, 8, "'a': found shape"),
    "text for a shape": ({"a": entry(shape="2")}, 8, "'a': found shape"),
    "huge dimension of an empty tensor": ({"a": entry(shape=[0, 2**62], data_offsets=[0, 0])}, 0, "no dimension above"),
    "nine dimensions": ({"a": entry(shape=[1] * 8 + [2])}, 8, "9 dimensions, expected at most 8"),
    "unknown dtype": ({"a": entry(dtype="F33")}, 8, "dtype 'F33', expected one of BOOL, U8"),
    "dtype is no text": ({"a": entry(dtype=["F32"])}, 8, "'a': found dtype"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "'a': found an entry that is not exactly"),
    "further field": ({"a": entry(more=1)}, 8, "'a': found an entry that is not exactly"),
    "entry is no object": ({"a": [1]}, 8, "'a': found an entry"),
    "offsets the wrong way round": ({"a": entry(data_offsets=[8, 0])}, 8, "'a': found data_offsets"),
    "one offset": ({"a": entry(data_offsets=[8])}, 8, "'a': found data_offsets"),
    "negative offset": ({"a": entry(data_offsets=[-8, 0])}, 8, "'a': found data_offsets"),
    "control character": ({"a\nb": F32}, 8, "no control characters"),
    "lone surrogate": ({"a\ud800": F32}, 8, "no control characters"),
    "no name": ({"": F32}, 8, "name of 0 bytes"),
    "long name": ({"a" * 513: F32}, 8, "name of 513 bytes"),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "metadata that is no mapping": ({"__metadata__": ["a"]}, 0, "__metadata__"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_the_format_is_refused_by_name(case: str) -> None:
    document, data_bytes, message = REFUSED[case]
    with pytest.raises(InvalidHeader, match=message) as caught:
        parse(document, data_bytes=data_bytes)
    assert caught.value.detail.startswith("model.safetensors")


ENTRY = json.dumps(F32).encode()
BROKEN: dict[str, tuple[bytes, str]] = {
    "duplicate names": (b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", "name 'a' twice"),
    "duplicate fields": (b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', "name 'dtype' twice"),
    "no JSON": (b'{"a":', "not JSON"),
    "not UTF-8": (b'{"\xff":{}}', "not JSON"),
    "a list": (b"[1]", "begins with b'\\['"),
    "nothing": (b"", "begins with b''"),
    "spaces first": (b" {}", "begins with b' '"),
    "deeply nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "NaN is not JSON"),
    "a number of 5000 digits": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}", "not JSON"),
    "something behind": (b"{}{}", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_header_is_refused(case: str) -> None:
    header, message = BROKEN[case]
    with pytest.raises(InvalidHeader, match=message):
        parse({}, header=header)


def test_more_tensors_than_the_limit_are_refused_while_parsing() -> None:
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{index}":{empty}' for index in range(200_002)) + "}"
    with pytest.raises(InvalidHeader, match="more than 200000 tensors"):
        parse({}, header=header.encode(), data_bytes=0)


def test_header_length_is_checked_before_anything_is_read() -> None:
    assert read_header_length(struct.pack("<Q", 100), file="a", file_size=108) == 100
    for prefix, size, message in (
        (b"\x01\x02", 2, "found 2 bytes, expected at least 8"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), 10**12, "expected at most 100000000"),
        (struct.pack("<Q", 2**64 - 1), 10**12, "expected at most 100000000"),
        (struct.pack("<Q", 101), 108, "expected it to fit"),
    ):
        with pytest.raises(InvalidHeader, match=message):
            read_header_length(prefix, file="a", file_size=size)


def test_messages_stay_short_whatever_the_header_holds() -> None:
    with pytest.raises(InvalidHeader) as caught:
        parse({"a": entry(dtype="x" * 100_000)})
    assert len(caught.value.detail) < 500


DTYPES = {
    "float32": "F32", "float64": "F64", "float16": "F16", "int8": "I8", "int64": "I64", "uint16": "U16", "bool": "BOOL",
}  # fmt: skip
arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)
names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None)
@given(tensors=st.dictionaries(names.filter(lambda name: name != "__metadata__"), arrays, max_size=5))
def test_reads_what_the_safetensors_library_writes(tensors: dict[str, Any]) -> None:
    content = save(tensors)
    length = read_header_length(content[:8], file="f", file_size=len(content))
    found = {spec.name: spec for spec in parse_header(content[8 : 8 + length], file="f", file_size=len(content))}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        spec = found[name]
        assert (spec.shape, spec.dtype) == (tensor.shape, DTYPES[str(tensor.dtype)])
        assert content[spec.begin : spec.end] == tensor.tobytes()


layouts = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(["F32", "F16", "I64", "BOOL"]), st.lists(st.integers(0, 3), max_size=3)),
    max_size=5,
)


@settings(max_examples=80, deadline=None)
@given(layout=layouts)
def test_the_safetensors_library_reads_what_is_written(
    layout: dict[str, tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = {name: prod(shape) * DTYPE_BYTES[dtype] for name, (dtype, shape) in layout.items()}
    header = make_header([(name, dtype, shape, sizes[name]) for name, (dtype, shape) in layout.items()])
    assert len(header) % 8 == 0
    path = tmp_path_factory.mktemp("headers") / "a.safetensors"
    path.write_bytes(header + bytes(sum(sizes.values())))
    with safetensors.safe_open(path, framework="numpy") as reader:
        found = {name: list(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118
        assert found == {name: shape for name, (_, shape) in layout.items()}
        assert reader.metadata() == {"format": "pt"}


GOOD = make_header([("a", "F32", [2], 8), ("b", "BF16", [3], 6), ("c", "I64", [], 8)]) + bytes(22)


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 23), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 30),
)
def test_a_damaged_file_is_refused_or_read_within_its_bounds(edits: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(GOOD)
    for position, value in edits:
        content[position] = value
    content = content[: len(content) - cut]
    try:
        length = read_header_length(bytes(content[:8]), file="f", file_size=len(content))
        found = parse_header(bytes(content[8 : 8 + length]), file="f", file_size=len(content))
    except InvalidHeader:
        return
    for spec in found:
        assert 8 + length <= spec.begin <= spec.end <= len(content)
        assert spec.size_bytes == spec.n_elements * DTYPE_BYTES[spec.dtype]


@settings(max_examples=300, deadline=None)
@given(header=st.binary(max_size=200).map(lambda tail: b'{"a":' + tail))
def test_noise_is_never_anything_but_an_invalid_header(header: bytes) -> None:
    with pytest.raises(InvalidHeader):
        parse({}, header=header, data_bytes=3)
