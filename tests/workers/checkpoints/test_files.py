"""Which files are a checkpoint: folders as Hugging Face writes them, bare files; what is refused, and how."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from app.domain.errors import CheckpointInvalid, InvalidHeader, MissingWeights, UnsafeFormat
from workers.checkpoints.files import check_index, find_files, read_headers

A: dict[str, Tensor] = {"a": torch.ones(2)}
B: dict[str, Tensor] = {"b": torch.ones(3)}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def write_shards(
    folder: Path, placed: dict[str, str], *, first: dict[str, Tensor] = A, second: dict[str, Tensor] = B
) -> Path:
    save_file(first, folder / FIRST)
    save_file(second, folder / SECOND)
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))
    return folder


def read(folder: Path) -> list[str]:
    found = find_files(folder)
    tensors = read_headers(found)
    check_index(found, tensors)
    return [tensor.name for tensor in tensors]


def test_a_folder_with_one_file_and_what_lies_beside_it(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    for name in (
        "config.json",
        "vocab.txt",
        "LICENSE",
        "tokenizer.model",
        "training_args.bin",
        "notes.html",
        ".hidden.json",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    found = find_files(tmp_path)
    assert found.weights == ("model.safetensors",)
    assert found.companions == ("1_Pooling/config.json", "LICENSE", "config.json", "tokenizer.model", "vocab.txt")


def test_shards_are_those_that_the_index_names(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": FIRST, "b": SECOND})
    save_file(A, tmp_path / "left_over.safetensors")
    assert find_files(tmp_path).weights == (FIRST, SECOND)
    assert read(tmp_path) == ["a", "b"]


def test_one_file_comes_before_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": FIRST, "b": SECOND})
    save_file(B, tmp_path / "model.safetensors")
    assert read(tmp_path) == ["b"]


def test_a_bare_file_is_a_checkpoint(tmp_path: Path) -> None:
    save_file(A, tmp_path / "expert.safetensors")
    assert find_files(tmp_path / "expert.safetensors").weights == ("expert.safetensors",)
    assert find_files(tmp_path).weights == ("expert.safetensors",)


def test_an_adapter_folder_has_its_own_file_name(tmp_path: Path) -> None:
    save_file(A, tmp_path / "adapter_model.safetensors")
    save_file(A, tmp_path / "other.safetensors")
    assert find_files(tmp_path).weights == ("adapter_model.safetensors",)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"pytorch_model{suffix}").write_bytes(b"\x80\x04")
    for source in (tmp_path, tmp_path / f"pytorch_model{suffix}"):
        with pytest.raises(
            UnsafeFormat, match=rf"pytorch_model\{suffix}: found pickled weights.*safe_serialization=True"
        ):
            find_files(source)


def test_pickles_beside_safetensors_do_no_harm(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert find_files(tmp_path).weights == ("model.safetensors",)


def test_no_weights_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingWeights, match=r"no \.safetensors file among 1 files"):
        find_files(tmp_path)
    with pytest.raises(MissingWeights, match="another kind"):
        find_files(tmp_path / "config.json")
    with pytest.raises(MissingWeights, match="nothing at 'absent'"):
        find_files(tmp_path / "absent")


def test_several_files_need_an_index(tmp_path: Path) -> None:
    save_file(A, tmp_path / "one.safetensors")
    save_file(B, tmp_path / "two.safetensors")
    with pytest.raises(MissingWeights, match=r"2 .safetensors files \(one.safetensors, two.safetensors\) without"):
        find_files(tmp_path)


def test_an_index_that_names_absent_files(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": FIRST, "b": SECOND})
    (tmp_path / SECOND).unlink()
    with pytest.raises(MissingWeights, match=f"names 1 files that are not there \\({SECOND}\\)"):
        find_files(tmp_path)


def test_an_index_that_places_tensors_where_they_are_not(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": SECOND, "b": SECOND, "c": FIRST})
    with pytest.raises(MissingWeights, match=f"places tensor 'a' in {SECOND}, but it lies in {FIRST} \\(2 such"):
        read(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND, "c": FIRST}}))
    with pytest.raises(MissingWeights, match=r"places tensor 'c' .* no file holds it"):
        read(tmp_path)


def test_an_index_that_leaves_a_tensor_out(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": FIRST, "b": SECOND}, first={**A, "forgotten": torch.ones(1)})
    with pytest.raises(MissingWeights, match="does not name tensor 'forgotten'"):
        read(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": FIRST, "b": SECOND}, second={**A, **B})
    with pytest.raises(InvalidHeader, match=f"{SECOND}, tensor 'a': {FIRST} holds it too"):
        read(tmp_path)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "weights.bin", 7])
def test_an_index_names_plain_files_only(file: object, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CheckpointInvalid, match="places tensor 'a' in"):
        find_files(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": 1}', "[" * 100_000])
def test_a_broken_index(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointInvalid, match=INDEX):
        find_files(tmp_path)


def test_links_to_files_are_followed_as_in_the_cache_of_a_hub(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file(A, blobs / "0a1b")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/0a1b"))
    found = find_files(snapshot)
    assert found.weights == ("model.safetensors",)
    assert [tensor.name for tensor in read_headers(found)] == sorted(A)


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    (tmp_path / "again").symlink_to(tmp_path)
    assert find_files(tmp_path).weights == ("model.safetensors",)
