"""What config.json says: names of things, tied tensors, dtype."""

import json
from pathlib import Path

import pytest

from app.domain.errors import CheckpointInvalid
from workers.checkpoints.config import ModelConfig, find_tied, read_config, with_dtype

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SAME = {EMBED: "1" * 64, HEAD: "1" * 64}
OTHER = {EMBED: "1" * 64, HEAD: "2" * 64}


def write(folder: Path, document: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(document))
    return read_config(folder)


def test_facts_of_a_config(tmp_path: Path) -> None:
    found = write(tmp_path, {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30522})
    assert found == ModelConfig("BertModel", "bert", 30522, None)


def test_a_model_of_text_and_images_speaks_of_its_text_part(tmp_path: Path) -> None:
    found = write(tmp_path, {"model_type": "llava", "text_config": {"vocab_size": 9, "tie_word_embeddings": True}})
    assert found == ModelConfig(model_type="llava", vocab_size=9, ties_embeddings=True)


def test_values_of_the_wrong_kind_are_not_believed(tmp_path: Path) -> None:
    found = write(tmp_path, {"architectures": "Bert", "model_type": 3, "vocab_size": True, "tie_word_embeddings": "no"})
    assert found == ModelConfig()


@pytest.mark.parametrize("word", ["\ud800", "a\0b", "x" * 129, "", "Bert\nModel"])
def test_words_that_no_table_could_keep_are_not_believed(tmp_path: Path, word: str) -> None:
    assert write(tmp_path, {"architectures": [word], "model_type": word}) == ModelConfig()


@pytest.mark.parametrize("vocab_size", [-1, 10**40])
def test_a_vocabulary_beyond_reason_is_not_believed(tmp_path: Path, vocab_size: int) -> None:
    assert write(tmp_path, {"vocab_size": vocab_size}) == ModelConfig()


def test_no_config_says_nothing(tmp_path: Path) -> None:
    assert read_config(tmp_path) == ModelConfig()


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000])
def test_a_broken_config_is_an_invalid_checkpoint(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointInvalid, match=r"config\.json: found"):
        read_config(tmp_path)


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(" " * 16_000_001)
    with pytest.raises(CheckpointInvalid, match="more than 16000000 bytes"):
        read_config(tmp_path)


def test_equal_copies_are_tied_unless_the_config_denies_it() -> None:
    assert find_tied(ModelConfig(ties_embeddings=True), list(SAME), SAME) == ((EMBED, HEAD),)
    assert find_tied(ModelConfig(), list(SAME), SAME) == ((EMBED, HEAD),)
    assert find_tied(ModelConfig(ties_embeddings=False), list(SAME), SAME) == ()


def test_copies_that_differ_are_not_tied_whatever_the_config_says() -> None:
    assert find_tied(ModelConfig(ties_embeddings=True), list(OTHER), OTHER) == ()


def test_a_head_that_is_left_out_is_known_by_name() -> None:
    assert find_tied(ModelConfig(ties_embeddings=True), [EMBED], SAME) == ((EMBED, HEAD),)
    assert find_tied(ModelConfig(), [EMBED], SAME) == ()


def test_encoder_and_decoder_of_t5() -> None:
    names = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    found = find_tied(ModelConfig(), names, dict.fromkeys(names, "1" * 64))
    assert found == (("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),)


def test_two_towers_are_left_apart() -> None:
    names = ["question.embeddings.word_embeddings.weight", "answer.embeddings.word_embeddings.weight"]
    assert find_tied(ModelConfig(), names, dict.fromkeys(names, "1" * 64)) == ()


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_dtype_is_replaced_under_the_name_it_has(key: str) -> None:
    found = json.loads(with_dtype(json.dumps({"a": 1, key: "float32"}).encode(), "bfloat16"))
    assert found == {"a": 1, key: "bfloat16"}


def test_a_config_without_dtype_gets_one() -> None:
    assert json.loads(with_dtype(b"{}", "float16")) == {"torch_dtype": "float16"}


def test_a_config_that_is_no_object_cannot_be_changed() -> None:
    for text in (b"[]", b"{"):
        with pytest.raises(CheckpointInvalid, match=r"config\.json"):
            with_dtype(text, "float16")
