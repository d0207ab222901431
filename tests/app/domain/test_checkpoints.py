"""Manifests: digests that do not depend on sharding, and what keeps models from being merged."""

from app.domain.checkpoints import (
    FileEntry,
    Manifest,
    TensorSpec,
    check_mergeable,
    digest_json,
    digest_weights,
)


def tensor(name: str, shape: tuple[int, ...] = (2,), dtype: str = "F32", file: str = "model.safetensors") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, file=file, begin=0, end=8)


def manifest(*tensors: TensorSpec, vocab_size: int | None = None) -> Manifest:
    file = FileEntry(path="model.safetensors", size_bytes=8, sha256="0" * 64)
    return Manifest(files=(file,), tensors=tensors, weights_digest="0" * 64, vocab_size=vocab_size)


def test_a_scalar_has_one_element_and_an_empty_tensor_none() -> None:
    assert tensor("a", ()).n_elements == 1
    assert tensor("a", (3, 0)).n_elements == 0


def test_weights_digest_ignores_sharding_and_order() -> None:
    sha = {"a": "1" * 64, "b": "2" * 64}
    one_file = [tensor("a"), tensor("b")]
    two_files = [tensor("b", file="2.safetensors"), tensor("a", file="1.safetensors")]
    assert digest_weights(one_file, sha) == digest_weights(two_files, sha)


def test_weights_digest_sees_name_dtype_shape_and_bytes() -> None:
    reference = digest_weights([tensor("a")], {"a": "1" * 64})
    assert digest_weights([tensor("b")], {"b": "1" * 64}) != reference
    assert digest_weights([tensor("a", dtype="I32")], {"a": "1" * 64}) != reference
    assert digest_weights([tensor("a", (1, 2))], {"a": "1" * 64}) != reference
    assert digest_weights([tensor("a")], {"a": "2" * 64}) != reference


def test_canonical_json_does_not_depend_on_key_order() -> None:
    assert digest_json({"a": 1, "b": [1.5, "ä"]}) == digest_json({"b": [1.5, "ä"], "a": 1})


def test_equal_headers_are_mergeable() -> None:
    report = check_mergeable(manifest(tensor("a"), vocab_size=9), [manifest(tensor("a"), vocab_size=9)])
    assert report.is_mergeable
    assert report.differences == ()
    assert report.vocab_sizes == (9, 9)


def test_every_difference_is_named_with_its_model() -> None:
    base = manifest(tensor("a"), tensor("b", (4, 2)), tensor("c"))
    model = manifest(tensor("b", (5, 2)), tensor("c", dtype="BF16"), tensor("d"))
    report = check_mergeable(base, [base, model])
    assert not report.is_mergeable
    found = [(d.name, d.problem, d.model, d.expected, d.found) for d in report.differences]
    assert found == [
        ("a", "missing", 1, None, None),
        ("b", "shape", 1, "[4, 2]", "[5, 2]"),
        ("c", "dtype", 1, "F32", "BF16"),
        ("d", "extra", 1, None, None),
    ]


def test_another_dtype_alone_does_not_prevent_a_merge() -> None:
    assert check_mergeable(manifest(tensor("a")), [manifest(tensor("a", dtype="BF16"))]).is_mergeable


def test_dtypes_come_most_bytes_first() -> None:
    small = TensorSpec(name="a", dtype="F32", shape=(1,), file="f", begin=0, end=4)
    large = TensorSpec(name="b", dtype="BF16", shape=(100,), file="f", begin=4, end=204)
    assert manifest(small, large).dtypes == ("BF16", "F32")
