import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
)

from app.domain.errors import ModelNotRunnable
from tests.workers import tiny_bert
from workers.checkpoints import model as model_module
from workers.checkpoints.model import Classifier, Encoder, Models, list_names, load_classifier, load_encoder

CPU = torch.device("cpu")


def load(folder: Path) -> Encoder:
    return load_encoder(tiny_bert.local(folder), CPU)


def fault(folder: Path) -> str:
    with pytest.raises(ModelNotRunnable) as caught:
        load(folder)
    assert str(folder) not in caught.value.detail  # the server's folders stay its own
    return caught.value.detail


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_encoder_has_the_file_s_weights_in_float32(tmp_path: Path) -> None:
    tiny_bert.make_encoder(tmp_path, dtype=torch.bfloat16)
    encoder = load(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name, value in encoder.module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float())
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    assert encoder.max_tokens == 16
    assert encoder.tokenizer.tokenize("The cat") == ["the", "cat"]


def test_encoder_leaves_a_head_in_the_files_aside(tmp_path: Path) -> None:
    encoder = load(tiny_bert.make_language_model(tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(encoder.module.state_dict()[name], stored[f"bert.{name}"])


def test_encoder_without_a_pooler_is_complete(tmp_path: Path) -> None:
    BertModel(tiny_bert.make_config(), add_pooling_layer=False).save_pretrained(tmp_path)
    tiny_bert.make_tokenizer().save_pretrained(tmp_path)
    assert isinstance(load(tmp_path), Encoder)


def test_sharded_weights_are_loaded(tmp_path: Path) -> None:
    tiny_bert.make_language_model(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert isinstance(load(tmp_path), Encoder)


def test_embedding_parameters_are_those_beside_the_table_of_tokens(tmp_path: Path) -> None:
    names = load(tiny_bert.make_encoder(tmp_path)).embedding_parameters
    assert names == {
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
    }


def test_embedding_parameters_of_a_table_that_stands_alone(tmp_path: Path) -> None:
    n_tokens = len(tiny_bert.SPECIAL + tiny_bert.WORDS)
    config = GPT2Config(vocab_size=n_tokens, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    GPT2Model(config).save_pretrained(tmp_path)
    tiny_bert.make_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path).embedding_parameters == {"wte.weight"}


def test_classifier_has_its_own_head_and_labels(tmp_path: Path) -> None:
    checkpoint = tiny_bert.local(tiny_bert.make_classifier(tmp_path, ("x", "y", "z")))
    classifier = Models().open(checkpoint, load_classifier)
    assert isinstance(classifier, Classifier)
    assert classifier.labels == ("x", "y", "z")
    assert torch.equal(
        classifier.module.state_dict()["classifier.weight"],
        load_file(tmp_path / "model.safetensors")["classifier.weight"],
    )


def test_a_checkpoint_without_a_head_is_no_classifier(tmp_path: Path) -> None:
    checkpoint = tiny_bert.local(tiny_bert.make_encoder(tmp_path))
    with pytest.raises(ModelNotRunnable, match=r"2 tensors are missing: classifier.bias, classifier.weight"):
        Models().open(checkpoint, load_classifier)


def test_models_loads_each_checkpoint_once(tmp_path: Path) -> None:
    models = Models()
    first = tiny_bert.local(tiny_bert.make_encoder(tmp_path / "a"))
    second = tiny_bert.local(tiny_bert.make_encoder(tmp_path / "b", seed=1))
    assert models.open(first, load_encoder) is models.open(first, load_encoder)
    assert models.open(first, load_encoder) is not models.open(second, load_encoder)
    assert models.device == CPU


def test_missing_weights_are_named(tmp_path: Path) -> None:
    tiny_bert.make_encoder(tmp_path)
    change_config(tmp_path, num_hidden_layers=2)
    assert "do not fit config.json (BertModel): 16 tensors are missing: encoder.layer.1.attention" in fault(tmp_path)


def test_left_over_weights_are_named(tmp_path: Path) -> None:
    tiny_bert.make_encoder(tmp_path)
    change_config(tmp_path, num_hidden_layers=0)
    assert "16 tensors are left over: encoder.layer.0.attention" in fault(tmp_path)


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    tiny_bert.make_encoder(tmp_path)
    change_config(tmp_path, intermediate_size=13)
    assert "3 tensors are of another shape: encoder.layer.0.intermediate.dense.bias," in fault(tmp_path)


def test_weights_without_a_config_are_refused(tmp_path: Path) -> None:
    tiny_bert.make_encoder(tmp_path)
    (tmp_path / "config.json").unlink()
    assert fault(tmp_path).startswith("The checkpoint has no config.json, so its architecture is unknown.")


def test_a_bare_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    assert fault(file).startswith("The checkpoint has no config.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "nonesuch"}, "(model_type 'nonesuch') cannot be loaded: The checkpoint you are trying to load"),
        ({"hidden_size": "wide"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 3}, "cannot be loaded: The hidden size (8) is not a multiple of"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    tiny_bert.make_encoder(tmp_path)
    change_config(tmp_path, **changes)
    assert expected in fault(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    tiny_bert.make_encoder(tmp_path)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    change_config(tmp_path, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    assert "cannot be loaded" in fault(tmp_path)
    assert not Path("ran").exists()


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    BertModel(tiny_bert.make_config()).save_pretrained(tmp_path)
    assert fault(tmp_path).startswith("The checkpoint has no tokenizer; expected one of tokenizer.json")


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(tmp_path: Path) -> None:
    tiny_bert.make_encoder(tmp_path, vocab_size=9)
    assert fault(tmp_path).startswith("The tokenizer has 15 tokens, the model embeds 9.")


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path) -> None:
    tiny_bert.make_encoder(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert fault(tmp_path).startswith("The tokenizer has no padding token")


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_bert.make_tokenizer().save_pretrained(folder)
    return folder


def test_tokenize_cuts_pads_on_the_right_and_keeps_what_the_model_takes(tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=15, dim=8, n_layers=1, n_heads=2, hidden_dim=12, max_position_embeddings=16)
    encoder = load(save(DistilBertModel(config), tmp_path))
    batch = encoder.tokenize(["the cat", "the cat is red"], max_tokens=5)
    assert set(batch) == {"input_ids", "attention_mask"}  # the tokenizer makes token_type_ids, DistilBERT takes none
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][:, 0].tolist() == [2, 2]  # [CLS]
    assert encoder.module(**batch).last_hidden_state.shape == (2, 5, 8)


def test_tokens_are_counted_as_tokenize_cuts_them_and_without_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "_COUNTED_AT_ONCE", 2)
    encoder = load(tiny_bert.make_encoder(tmp_path / "bert"))
    texts = ["the cat", "the cat is red and runs", "", "red", "a dog"]
    assert encoder.count_tokens(texts, max_tokens=5) == [4, 5, 2, 3, 4]  # with [CLS] and [SEP]
    assert encoder.count_tokens([], max_tokens=5) == []


def test_positions_that_begin_after_the_padding_s_are_counted(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=15, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=12, pad_token_id=0,
    )  # fmt: skip
    encoder = load(save(RobertaModel(config), tmp_path))
    assert encoder.max_tokens == 11
    batch = encoder.tokenize(["red " * 40], max_tokens=11)
    assert encoder.module(**batch).last_hidden_state.shape == (1, 11, 8)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=15, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    assert fault(save(T5Model(config), tmp_path)).startswith("The checkpoint is a T5Model; expected an encoder")


def test_long_lists_of_names_are_cut() -> None:
    assert list_names(["a", "b"]) == "a, b"
    assert list_names(list("abcdefg")) == "a, b, c, d, e and 2 more"
