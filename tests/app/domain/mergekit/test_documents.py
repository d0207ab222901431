"""Strict YAML: what is read, what is refused, and that no short text costs much."""

import contextlib
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import AmalgamError, BadRequest, Invalid
from app.domain.mergekit.documents import MAX_DEPTH, MAX_NODES, read


def test_scalars_are_those_of_yaml_1_2_and_yes_and_no() -> None:
    text = "[1, -2, 2.5, .5, 1e-5, 1.5e3, true, No, null, ~, '5', 2001-01-01, 010, 1_000, 0x10, 1:30, =]"
    assert read(text.encode()).to_json() == [
        1, -2, 2.5, 0.5, 1e-5, 1500.0, True, False, None, None, "5", "2001-01-01", "010", "1_000", "0x10", "1:30", "=",
    ]  # fmt: skip


def test_every_value_knows_its_line() -> None:
    root = read(b"a: 1\nb:\n  - c: 2\n  - d\n")
    assert isinstance(root.value, dict)
    below = root.value["b"].value
    assert isinstance(below, list)
    assert (root.line, root.value["a"].line, [item.line for item in below]) == (1, 1, [3, 4])


def test_an_alias_is_what_it_names() -> None:
    assert read(b"a: &x {c: d}\nb: *x\n").to_json() == {"a": {"c": "d"}, "b": {"c": "d"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\na: 2", "'a' twice in one mapping (line 2)"),
        (b"a: &a [*a]", "alias *a of nothing that has ended (line 1)"),
        (b"a: *b", "alias *b of nothing"),
        (b"--- 1\n--- 2", "a second document (line 2)"),
        (b"a: !!python/object:os.system x", "the tag"),
        (b"!t a: b", "the tag '!t'"),
        (b"1: 2", "the key 1 (line 1)"),
        (b"? [a]\n: b", "the key list"),
        (b'a: "\\0"', "NUL"),
        (b"{a: b", "not valid YAML: did not find expected"),
        (b"a: \x00", "not valid YAML"),
        (b"\xff", "not UTF-8"),
        (b"", "no YAML document"),
        (b"[" * 1000, f"more than {MAX_DEPTH} levels"),
        (b"- " * 1000, f"more than {MAX_DEPTH} levels"),
    ],
)
def test_what_is_not_strict_yaml_is_a_bad_request(text: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as found:
        read(text)
    assert message in found.value.detail


@pytest.mark.parametrize("text", ["a: .nan", "a: -.inf", "a: 1e999", "a: [.INF]"])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(Invalid, match="finite number"):
        read(text.encode())


def test_aliases_are_counted_written_out() -> None:
    levels = [b"l0: &l0 [x,x,x,x,x,x,x,x,x]"]
    for n in range(1, 9):
        levels.append(b"l%d: &l%d [%s]" % (n, n, b",".join([b"*l%d" % (n - 1)] * 9)))
    with pytest.raises(BadRequest, match=f"more than {MAX_NODES} values"):
        read(b"\n".join(levels))


@pytest.mark.parametrize("piece", ["{", "[", "? ", "a: \n ", "&a ", "'", "{a,", "a,", '"\\n', "x: &x\n", "- a\n"])
def test_no_text_within_the_limit_takes_long(piece: str) -> None:
    begin = time.monotonic()
    with contextlib.suppress(AmalgamError):
        read((piece * (2**20 // len(piece))).encode())
    assert time.monotonic() - begin < 20  # seconds, on a busy machine; a bad text takes about one


PLAIN: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(-1e9, 1e9)
    | st.text("ab: -#'\"\n{}[]*&%é", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc -:", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(document=PLAIN)
def test_what_pyyaml_writes_is_read_as_it_was(document: Any) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    assert read(text.encode()).to_json() == document


@given(text=st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(AmalgamError):
        read(text.encode("utf-8", "surrogatepass"))
