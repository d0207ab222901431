"""Import: a manifest that describes the files exactly, for any sharding; what is broken is named."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.domain.checkpoints import CheckpointKind, Manifest
from app.domain.errors import CheckpointInvalid, InputChanged, InvalidHeader
from app.domain.jobs import Progress
from tests.workers.files import ignore, write_checkpoint
from workers.checkpoints import hashing
from workers.pipelines.importing import import_checkpoint

TENSORS = {
    "weight": torch.randn(30, 40, generator=torch.Generator().manual_seed(0)),
    "ids": torch.arange(5),
    "scale": torch.tensor(2.0),
    "empty": torch.empty(0, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
}


def test_every_file_is_listed_with_size_and_digest(tmp_path: Path) -> None:
    manifest = write_checkpoint(tmp_path / "c", TENSORS).manifest
    assert [entry.path for entry in manifest.files] == ["config.json", "model.safetensors"]
    for entry in manifest.files:
        content = (tmp_path / "c" / entry.path).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (manifest.model_type, manifest.kind) == ("toy", CheckpointKind.DENSE)


def test_every_tensor_is_where_the_manifest_says(tmp_path: Path) -> None:
    manifest = write_checkpoint(tmp_path / "c", TENSORS).manifest
    assert [tensor.name for tensor in manifest.tensors] == sorted(TENSORS)
    for tensor in manifest.tensors:
        content = (tmp_path / "c" / tensor.file).read_bytes()[tensor.begin : tensor.end]
        assert content == TENSORS[tensor.name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        assert tensor.shape == tuple(TENSORS[tensor.name].shape)


def test_the_weights_digest_does_not_depend_on_sharding_and_sees_every_bit(tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path / "whole", TENSORS).manifest
    sharded = write_checkpoint(tmp_path / "sharded", TENSORS, n_shards=3).manifest
    assert whole.weights_digest == sharded.weights_digest
    assert whole.digest != sharded.digest
    changed = {**TENSORS, "scale": torch.nextafter(TENSORS["scale"], torch.tensor(3.0))}
    assert write_checkpoint(tmp_path / "changed", changed).manifest.weights_digest != whole.weights_digest


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_show(threads: int, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", TENSORS, n_shards=2)
    assert import_checkpoint(checkpoint.path, ignore, threads=threads) == checkpoint.manifest


def test_progress_ends_with_every_byte_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pipelines.progress.INTERVAL_SECONDS", 0.0)
    checkpoint = write_checkpoint(tmp_path / "c", TENSORS)
    reports: list[Progress] = []
    import_checkpoint(checkpoint.path, reports.append)
    assert reports[0].fraction == 0.0
    assert (reports[-1].fraction, reports[-1].stage, reports[-1].unit) == (1.0, "hashing", "bytes")
    assert reports[-1].done == reports[-1].total == sum(entry.size_bytes for entry in checkpoint.manifest.files)


def test_tied_weights_are_listed_once_in_the_manifest(tmp_path: Path) -> None:
    embeddings = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    tied = {"model.embed_tokens.weight": embeddings, "lm_head.weight": embeddings.clone()}
    manifest = write_checkpoint(tmp_path / "c", tied).manifest
    assert manifest.tied == (("model.embed_tokens.weight", "lm_head.weight"),)


def test_a_bare_file_has_a_manifest_too(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "expert.safetensors")
    manifest = import_checkpoint(tmp_path / "expert.safetensors", ignore)
    assert [entry.path for entry in manifest.files] == ["expert.safetensors"]
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_broken_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidHeader, match=r"model\.safetensors: found a header of"):
        import_checkpoint(tmp_path, ignore)


def test_a_broken_config_makes_the_checkpoint_invalid(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointInvalid, match=r"config\.json: found text that is not JSON"):
        import_checkpoint(tmp_path, ignore)


def test_not_a_number_is_no_reason_to_refuse_an_import(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", {"w": torch.tensor([float("nan")])})


def test_a_file_cut_short_while_it_is_hashed_is_an_error(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", TENSORS)
    path = checkpoint.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputChanged, match=r"model\.safetensors became shorter"):
        hashing.hash_weights(path, checkpoint.manifest.tensors, lambda _: None)
