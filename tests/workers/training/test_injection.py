"""LoRA in a model: where it is put, where it begins, and that PEFT and the merging side read what comes out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import BertModel, GPT2Config, GPT2Model

from app.domain.errors import IncompatibleCheckpoints, InvalidParameters
from tests.workers.training.trainables import RUN, make_bert, make_bert_task
from workers.checkpoints.trained_adapter import write_trained_adapter
from workers.finetuning import lora
from workers.model_contract import LoraResult
from workers.training.injection import begin, choose_targets, draw_first_factor, factors, inject
from workers.training.parameters import LoraParameters

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

QUERY, VALUE = (f"encoder.layer.0.attention.self.{name}" for name in ("query", "value"))
INPUTS = torch.arange(12).view(4, 3)
PARAMETERS = LoraParameters(steps=5, batch_size=4, rank=2, alpha=8, use_rslora=True, learning_rate=0.1)


def train(parameters: LoraParameters = PARAMETERS, module: BertModel | None = None) -> tuple[BertModel, LoraResult]:
    module = module or make_bert()
    trained = lora.train.train(make_bert_task(module), parameters, RUN)
    assert trained.adapter is not None
    return module, trained.adapter


def test_query_and_value_are_the_default() -> None:
    assert choose_targets(make_bert(), None) == (QUERY, VALUE)


def test_an_architecture_that_peft_does_not_know_has_the_first_targets_that_are_all_there() -> None:
    attention = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("q_proj", "k_proj", "v_proj")})
    assert choose_targets(torch.nn.ModuleDict({"x": attention}), None) == ("x.q_proj", "x.v_proj")


def test_targets_are_paths_or_ends_of_paths() -> None:
    assert choose_targets(make_bert(), ("self.key", QUERY)) == ("encoder.layer.0.attention.self.key", QUERY)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("query", "vlaue"), r"^/parameters/target_modules/1: the model has no module 'vlaue'; it has dense, key"),
        (("word_embeddings",), "is a Embedding, which cannot be adapted; name linear modules"),
    ],
)
def test_a_target_that_is_none_is_refused_by_name(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidParameters, match=message):
        choose_targets(make_bert(), targets)


def test_modules_that_are_held_are_no_targets() -> None:
    held = frozenset({f"{QUERY}.weight", "pooler.dense.weight"})
    found = choose_targets(make_bert(), ("dense",), held=held)
    assert found == (
        "encoder.layer.0.attention.output.dense", "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"
    )  # fmt: skip
    with pytest.raises(InvalidParameters, match=r"/0: 'query' lies in the head, or where no output of this task"):
        choose_targets(make_bert(), ("query", "value"), held=held)


def test_a_model_without_attention_needs_targets() -> None:
    with pytest.raises(InvalidParameters, match=r"which it has: a\. Name some"):
        choose_targets(torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)}), None)


def test_training_begins_at_the_base() -> None:
    module = make_bert()
    before = module(input_ids=INPUTS).last_hidden_state
    begin(inject(module, PARAMETERS), base_key="base", init_seed=0, start=None)
    assert torch.equal(module(input_ids=INPUTS).last_hidden_state, before)


def test_factors_begin_by_base_module_and_seed_alone() -> None:
    def first(base_key: str = "base", init_seed: int = 0, targets: tuple[str, ...] | None = None) -> torch.Tensor:
        layers = inject(make_bert(), PARAMETERS.model_copy(update={"target_modules": targets}))
        begin(layers, base_key=base_key, init_seed=init_seed, start=None)
        return factors(layers[QUERY])[0]

    assert torch.equal(first(), first(targets=("query", "key", "dense")))
    assert not torch.equal(first(), first(base_key="another"))
    assert not torch.equal(first(), first(init_seed=1))


def test_the_first_factor_is_uniform_within_one_by_the_root_of_its_inputs() -> None:
    drawn = draw_first_factor(torch.Size((50, 25)), key="k")
    assert drawn.dtype is torch.float32
    assert float(drawn.abs().max()) <= 0.2
    assert float(drawn.std()) == pytest.approx(0.2 / 3**0.5, rel=0.05)
    assert abs(float(drawn.mean())) < 0.01


def test_only_the_factors_learn_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    module, adapter = train()
    assert torch.equal(torch.get_rng_state(), before)
    base = make_bert().state_dict()
    after = {name.replace(".base_layer", ""): value for name, value in module.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert [update.module for update in adapter.updates] == [QUERY, VALUE]
    assert all(update.b.any() and update.start is None for update in adapter.updates)


def test_peft_loads_what_is_written_and_gives_the_same_outputs(tmp_path: Path) -> None:
    module, adapter = train()
    write_trained_adapter(adapter, tmp_path, {})
    loaded = PeftModel.from_pretrained(make_bert(), tmp_path)
    assert torch.equal(loaded(input_ids=INPUTS).last_hidden_state, module(input_ids=INPUTS).last_hidden_state)


def test_weights_that_are_stored_the_other_way_round_are_adapted_too() -> None:
    gpt2 = GPT2Model(GPT2Config(vocab_size=12, n_embd=4, n_layer=1, n_head=2, n_positions=4))
    layers = inject(gpt2.requires_grad_(requires_grad=False), PARAMETERS)
    begin(layers, base_key="base", init_seed=0, start=None)
    a, b = factors(layers["h.0.attn.c_attn"])
    assert (a.shape, b.shape) == ((2, 4), (12, 2))


def test_a_start_of_other_modules_or_rank_is_refused() -> None:
    def begin_at(**changes: torch.Tensor) -> None:
        first = {QUERY: torch.ones(2, 8), VALUE: torch.ones(2, 8), **changes}
        start = {name: (a, torch.ones(8, len(a))) for name, a in first.items()}
        begin(inject(make_bert(), PARAMETERS), base_key="base", init_seed=0, start=start)

    begin_at()
    with pytest.raises(IncompatibleCheckpoints, match="adapts 3 modules and this request 2; they differ in other"):
        begin_at(other=torch.ones(2, 8))
    with pytest.raises(IncompatibleCheckpoints, match=r"has rank 3 .* and this request rank 2"):
        begin_at(**{VALUE: torch.ones(3, 8)})


def test_the_adapter_is_shown_before_it_learns() -> None:
    shown: list[LoraResult] = []
    lora.train.train(make_bert_task(make_bert()), PARAMETERS, replace(RUN, on_begin=shown.append))
    assert [update.module for update in shown[0].updates] == [QUERY, VALUE]
