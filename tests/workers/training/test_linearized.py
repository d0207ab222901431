"""Linearized LoRA: the closed form against forward differentiation, linearity, and the fold into dense weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import BertModel

from tests.workers.training.trainables import RUN, make_bert, make_bert_task
from workers.checkpoints.trained_adapter import write_trained_adapter
from workers.finetuning import linearized_lora
from workers.model_contract import LoraResult, Start
from workers.training.injection import factors, inject
from workers.training.linearized import ClosedForm, JacobianVectorProduct, LinearizedLora, linearize
from workers.training.parameters import LoraParameters

pytestmark = [  # PEFT and torch ask for what is going away in transformers and torch
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),
]

RANK = 2
SCALING = 1.5
INPUTS = torch.arange(12).view(4, 3)
PARAMETERS = LoraParameters(steps=5, batch_size=4, rank=RANK, alpha=RANK * SCALING, learning_rate=0.1)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_net(*, b_start: float) -> tuple[torch.nn.Module, dict[str, LinearizedLora]]:
    """A linear layer and a convolution behind it, linearized around a start, with factors that have moved."""
    net = torch.nn.Sequential(torch.nn.Linear(9, 18), torch.nn.Unflatten(1, (2, 3, 3)), torch.nn.Conv2d(2, 4, 2))
    net.double().requires_grad_(requires_grad=False)
    layers = inject(net, PARAMETERS.model_copy(update={"target_modules": ("0", "2")}))
    net.double()
    with torch.no_grad():
        for seed, layer in enumerate(layers.values()):
            a, b = factors(layer)
            a.copy_(draw(*a.shape, seed=seed))
            b.copy_(b_start * draw(*b.shape, seed=10 + seed))
    made = linearize(net, layers)
    move(made, 1.0)
    return net, made


def move(made: dict[str, LinearizedLora], by: float) -> None:
    with torch.no_grad():
        for seed, one in enumerate(made.values()):
            for shift, (factor, start) in enumerate(zip(factors(one.layer), one.start, strict=True)):
                factor.copy_(start + by * draw(*factor.shape, seed=20 + 2 * seed + shift))


@pytest.mark.parametrize("b_start", [0.0, 1.0])
def test_closed_form_and_its_gradients_are_those_of_the_jacobian_vector_product(b_start: float) -> None:
    _, made = make_net(b_start=b_start)
    closed = made["0"]
    assert isinstance(closed, ClosedForm)
    oracle = JacobianVectorProduct.__new__(JacobianVectorProduct)
    oracle.__dict__ = closed.__dict__  # the same layer and start, the other forward
    x = draw(5, 9, seed=3).requires_grad_()
    learned = [x, *(factor for factor in factors(closed.layer) if factor.requires_grad)]
    found, expected = closed(x), oracle(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = draw(*found.shape, seed=4)
    gradients = [torch.autograd.grad((y * weights).sum(), learned) for y in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("b_start", [0.0, 1.0])
def test_the_whole_net_folds_into_dense_weights(b_start: float) -> None:
    net, made = make_net(b_start=b_start)
    x = draw(5, 9, seed=3)
    expected = net(x)
    folded: list[Any] = [
        torch.nn.Linear(9, 18).double(),
        torch.nn.Unflatten(1, (2, 3, 3)),
        torch.nn.Conv2d(2, 4, 2).double(),
    ]
    with torch.no_grad():
        for name, one in made.items():
            base: Any = one.layer.get_base_layer()
            (a, b), (a0, b0) = (tuple(factor.flatten(1) for factor in pair) for pair in (factors(one.layer), one.start))
            update = SCALING * (b @ a0 + b0 @ (a - a0))
            folded[int(name)].weight.copy_(base.weight + update.view_as(base.weight))
            folded[int(name)].bias.copy_(base.bias)
    torch.testing.assert_close(torch.nn.Sequential(*folded)(x), expected, rtol=0, atol=1e-10)


def test_a_layer_is_linear_in_what_is_learned() -> None:
    _, made = make_net(b_start=1.0)
    layer, x = made["0"], draw(5, 9, seed=3)

    def output(by: float) -> Tensor:
        move(made, by)
        return layer(x)  # type: ignore[no-any-return]  # a module's call is untyped

    at_start = output(0.0)
    torch.testing.assert_close(output(0.5) - at_start, 0.5 * (output(1.0) - at_start), rtol=0, atol=1e-12)


def test_where_b_begins_at_zero_a_has_no_influence_and_is_not_trained() -> None:
    _, made = make_net(b_start=0.0)
    layer = made["0"].layer
    a, b = factors(layer)
    assert (a.requires_grad, b.requires_grad) == (False, True)
    before = made["0"](draw(5, 9, seed=3))
    with torch.no_grad():
        a.add_(1.0)
    assert torch.equal(made["0"](draw(5, 9, seed=3)), before)


# --- the technique ----------------------------------------------------------------------------------------------------


def train(start: Start | None = None, *, steps: int = 5) -> tuple[BertModel, LoraResult]:
    module = make_bert()
    parameters = linearized_lora.LinearizedLoraParameters.model_validate(PARAMETERS.model_dump() | {"steps": steps})
    trained = linearized_lora.train.train(make_bert_task(module), parameters, replace(RUN, start=start))
    assert trained.adapter is not None
    return module, trained.adapter


def test_experts_of_a_base_begin_at_one_start_and_a_keeps_it() -> None:
    (_, one), (_, other) = train(), train(steps=3)
    for update, its_sibling in zip(one.updates, other.updates, strict=True):
        assert update.start is not None
        assert its_sibling.start is not None
        assert torch.equal(update.start[0], its_sibling.start[0])
        assert torch.equal(update.a, update.start[0])
        assert not update.start[1].any()
        assert not torch.equal(update.b, its_sibling.b)


def test_an_expert_begins_where_its_family_did() -> None:
    start = {update.module: (update.a + 1, torch.ones_like(update.b)) for update in train(steps=1)[1].updates}
    _, adapter = train(start)
    for update in adapter.updates:
        assert update.start is not None
        assert all(map(torch.equal, update.start, start[update.module]))
        assert not torch.equal(update.a, update.start[0])  # B₀ is not zero, so A learns


def test_peft_loads_the_folded_copy_with_the_same_outputs(tmp_path: Path) -> None:
    module, adapter = train()
    write_trained_adapter(adapter, tmp_path, {})
    loaded = PeftModel.from_pretrained(make_bert(), tmp_path)
    found, expected = (model(input_ids=INPUTS).last_hidden_state for model in (loaded, module))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_there_is_no_copy_where_it_would_need_another_rank(tmp_path: Path) -> None:
    _, adapter = train({update.module: (update.a, torch.ones_like(update.b)) for update in train(steps=1)[1].updates})
    write_trained_adapter(adapter, tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json", "linearized_adapter_model.safetensors"
    ]  # fmt: skip
