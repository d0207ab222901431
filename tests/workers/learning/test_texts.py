"""Methods learn on tasks whose labels are texts: T5 by its answers, GPT-2 by the next tokens."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, T5ForConditionalGeneration

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import HeadMismatch, InvalidDataset
from app.domain.jobs import Progress
from app.domain.tasks import LocalTask, OwnHead
from tests.workers import tiny_bert, tiny_language
from tests.workers.files import read_tensors
from tests.workers.learning.world import World, run
from workers import predictions
from workers.catalog import load_evaluator
from workers.checkpoints.language import IGNORED
from workers.checkpoints.model import Models
from workers.checkpoints.places import find_places
from workers.learning.fisher import Labels, measure_fisher
from workers.model_contract import Probe, Subject

PROSE = {"max_tokens": 8, "stride": 4}
LAYERS = {"t5": "decoder.block.0.layer.1.EncDecAttention.k.weight", "gpt2": "transformer.h.0.mlp.c_fc.weight"}
EMBEDDINGS = {"t5": "shared.weight", "gpt2": "transformer.wte.weight"}
OTHER_ROWS = [{"text": f"the {word} runs", "label": index % 2} for index, word in enumerate(("cat", "red", "dog"))]


def make_tasks(folder: Path, name: str) -> tuple[LocalTask, ...]:
    kinds: dict[str, dict[str, Any]] = {
        "t5": {"kind": "text2text", "metric": "exact_match", "classes": ("red cat", "dog")},
        "gpt2": {"kind": "perplexity", "metric": "perplexity", "classes": (), "preprocessing": PROSE},
    }
    first = tiny_bert.make_task(folder / "first", head=OwnHead(), name="first", **kinds[name])
    files = {split: tiny_bert.write_rows(folder / f"second/{split}.jsonl", OTHER_ROWS) for split in first.files}
    second = tiny_bert.as_task(files, head=OwnHead(), name="second", **kinds[name])
    return first.model_copy(update={"id": "task_0"}), second.model_copy(update={"id": "task_1"})


def near(base: Path, folder: Path, library: Any, *, seed: int) -> LocalCheckpoint:
    """Write a model that differs from the base in every weight."""
    generator = torch.Generator().manual_seed(seed)
    model = library.from_pretrained(base)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(folder)
    tiny_language.make_tokenizer(is_causal=library is GPT2LMHeadModel).save_pretrained(folder)
    return tiny_bert.local(folder)


@pytest.fixture(scope="module", params=["t5", "gpt2"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def texts(name: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp(name)
    make = tiny_language.make_t5 if name == "t5" else tiny_language.make_gpt2
    library = T5ForConditionalGeneration if name == "t5" else GPT2LMHeadModel
    base = make(folder / "base")
    models = tuple(near(base, folder / f"model-{seed}", library, seed=seed) for seed in (1, 2))
    return World(tiny_bert.local(base), models, make_tasks(folder / "tasks", name))


def open_probe(world: World, task: int = 0) -> Probe:
    evaluator = load_evaluator(world.tasks[task].spec.kind)
    assert evaluator.open_probe is not None
    return evaluator.open_probe(Subject(world.tasks[task], world.base, world.base), "train", Models())


def log_likelihood(world: World, module: Any, index: int) -> Tensor:
    """Return log p of one example of the first task's train split, summed over its tokens, the library's way."""
    row = tiny_bert.make_rows()[index]
    if isinstance(module, GPT2LMHeadModel):
        tokenizer = tiny_language.make_tokenizer(is_causal=True)
        ids = torch.tensor([[3, *tokenizer(str(row["text"]))["input_ids"]]])
        found: Tensor = -module(ids, labels=ids).loss * (ids.shape[1] - 1)
        return found
    tokenizer = tiny_language.make_tokenizer(is_causal=False)
    ids, wanted = (
        tokenizer(text, return_tensors="pt")["input_ids"]
        for text in (str(row["text"]), world.tasks[0].spec.classes[int(str(row["label"]))])
    )
    shifted = torch.cat([torch.zeros(1, 1, dtype=torch.long), wanted[:, :-1]], dim=1)
    answered: Tensor = -module(input_ids=ids, decoder_input_ids=shifted, labels=wanted).loss * wanted.shape[1]
    return answered


# --- the probe ----------------------------------------------------------------------------------------------------


def test_the_loss_of_an_example_is_the_mean_over_its_tokens_whatever_stands_beside_it(texts: World) -> None:
    probe = open_probe(texts)
    assert (probe.n_examples, sorted(probe.order), list(probe.labels)) == (12, list(range(12)), [])
    assert probe.tokens is not None
    together = probe.losses(range(12))
    for index in (0, 5, 7):
        count = probe.tokens.counts[index]
        by_hand = -log_likelihood(texts, probe.module, index) / count
        torch.testing.assert_close(together[index], by_hand, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(probe.losses([index])[0], by_hand, rtol=1e-4, atol=1e-5)
        assert probe.tokens.of_example(index).shape == (count, 14)


def test_there_are_no_probabilities_of_classes(texts: World) -> None:
    with pytest.raises(HeadMismatch, match=r"Task 'first' is of kind '(text2text|perplexity)', whose models give no"):
        open_probe(texts).logits([0])


def test_a_weight_under_several_paths_has_one_place(texts: World, name: str) -> None:
    module = open_probe(texts).module
    places = find_places(module, texts.base.manifest)
    table = module.get_input_embeddings().weight  # type: ignore[operator]
    paths = [path for path, value in module.named_parameters(remove_duplicate=False) if value is table]
    assert len(paths) > 1
    assert {places[path] for path in paths} == {EMBEDDINGS[name]}


def test_texts_too_short_to_learn_on_are_refused(tmp_path: Path) -> None:
    files = {"train": tiny_bert.write_rows(tmp_path / "train.jsonl", [{"text": "cat"}])}
    preprocessing = {**PROSE, "add_bos": False}
    task = tiny_bert.as_task(
        files, head=OwnHead(), kind="perplexity", metric="perplexity", classes=(), preprocessing=preprocessing
    )
    base = tiny_bert.local(tiny_language.make_gpt2(tmp_path / "gpt2"))
    evaluator = load_evaluator("perplexity")
    assert evaluator.open_probe is not None
    with pytest.raises(InvalidDataset, match="train split: no text has two tokens, nothing to learn"):
        evaluator.open_probe(Subject(task, base, base), "train", Models())


# --- fisher -------------------------------------------------------------------------------------------------------

INPUTS = torch.tensor([[[1.0, -2.0], [0.5, 3.0]], [[0.0, 1.0], [2.0, 0.0]]])  # [2 examples, 2 tokens, 2]
GIVEN = torch.tensor([[0, 2], [1, IGNORED]])  # the second example has one token


def measure(labels: Labels, *, seed: int = 0) -> Tensor:
    """Return the information of a linear model of the next of three tokens."""
    module = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.3, -0.1], [0.0, 0.4], [-0.2, 0.2]]))
    task = tiny_bert.as_task({}, head=OwnHead(), kind="perplexity", metric="perplexity", classes=())
    predict: predictions.Predict = lambda batch: (module(INPUTS[list(batch)]), GIVEN[list(batch)])  # noqa: E731
    probe = predictions.make_probe(task, module, predict, counts=[2, 1], order=[0, 1])
    generator = torch.Generator().manual_seed(seed)
    return measure_fisher(probe, {"w": module.weight}, labels, generator, lambda _done: None)["w"]


def probabilities() -> Tensor:
    return (INPUTS @ torch.tensor([[0.3, -0.1], [0.0, 0.4], [-0.2, 0.2]]).T).softmax(-1)  # [2, 2, 3]


def test_with_given_texts_the_gradient_is_that_of_the_whole_text() -> None:
    wanted = nn.functional.one_hot(GIVEN.clamp(min=0), 3) * (GIVEN != IGNORED).unsqueeze(-1)
    slopes = wanted - probabilities() * (GIVEN != IGNORED).unsqueeze(-1)  # [2, 2, 3]
    expected = torch.einsum("itk,itj->ikj", slopes, INPUTS).square().mean(dim=0)
    torch.testing.assert_close(measure("given"), expected)


def test_drawn_tokens_have_the_mean_of_the_sum_over_tokens() -> None:
    # scores of tokens that are drawn apart have mean 0, so squares of sums are sums of squares: Σ_t p (1 − p) x²
    p = probabilities() * (GIVEN != IGNORED).unsqueeze(-1)
    expected = torch.einsum("itk,itj->kj", p * (1 - p), INPUTS.square()) / 2
    assert torch.equal(measure("sampled", seed=3), measure("sampled", seed=3))
    mean = torch.stack([measure("sampled", seed=seed) for seed in range(600)]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=0.2, atol=0.05)


def statistics_in(folder: Path, world: World, kind: str) -> list[dict[str, Tensor]]:
    return [
        load_file(folder / f"statistics/{kind}-{model.manifest.weights_digest[:16]}.safetensors")
        for model in world.models
    ]


@pytest.mark.parametrize("labels", ["given", "sampled"])
def test_the_merge_counts_each_weight_by_its_information(texts: World, name: str, labels: str, tmp_path: Path) -> None:
    texts.merge(tmp_path / "out", {"labels": labels}, method="fisher", max_examples=3)
    found = statistics_in(tmp_path / "out", texts, "fisher")
    lengths = [math.sqrt(sum(float(tensor.double().square().sum()) for tensor in one.values())) for one in found]
    models, merged = [read_tensors(one.path) for one in texts.models], read_tensors(tmp_path / "out")
    assert {LAYERS[name], EMBEDDINGS[name]} < found[0].keys() == merged.keys()
    for tensor in (LAYERS[name], EMBEDDINGS[name]):
        counts = [one[tensor].double() / length + 1e-6 for one, length in zip(found, lengths, strict=True)]
        expected = sum(count * model[tensor] for count, model in zip(counts, models, strict=True)) / sum(counts)
        torch.testing.assert_close(merged[tensor].double(), expected, rtol=1e-6, atol=1e-7)


def test_the_information_of_one_example_is_its_squared_gradient(texts: World, name: str, tmp_path: Path) -> None:
    work = texts.work(tmp_path / "out", {"labels": "given"}, method="fisher", split="train", max_examples=1)
    run(work)
    library: Any = T5ForConditionalGeneration if name == "t5" else GPT2LMHeadModel
    model = library.from_pretrained(texts.models[0].path).eval()
    found = statistics_in(tmp_path / "out", texts, "fisher")[0][LAYERS[name]]
    weight = model.get_parameter(LAYERS[name])
    candidates = [
        torch.autograd.grad(log_likelihood(texts, model, index), weight)[0].square() for index in range(12)
    ]  # which example the seed draws is of no interest here
    assert any(torch.allclose(found, one, rtol=1e-3, atol=1e-6) for one in candidates)


def test_all_outcomes_of_a_text_are_not_summed(texts: World, tmp_path: Path) -> None:
    with pytest.raises(HeadMismatch, match="whose models give no probabilities of classes"):
        texts.merge(tmp_path / "out", {}, method="fisher")


# --- regression means ---------------------------------------------------------------------------------------------


def test_linear_layers_are_merged_on_what_enters_them(texts: World, name: str, tmp_path: Path) -> None:
    texts.merge(tmp_path / "out", {"ridge": 1e-9}, method="regmean")
    merged, models = read_tensors(tmp_path / "out"), [read_tensors(one.path) for one in texts.models]
    tensor, is_transposed = LAYERS[name], name == "gpt2"
    grams = [
        one[f"{tensor}.transposed" if is_transposed else tensor].double()
        for one in statistics_in(tmp_path / "out", texts, "gram")
    ]
    shrunk = [0.9 * gram + 0.1 * gram.diag().diag() for gram in grams]
    weights = [(model[tensor].mT if is_transposed else model[tensor]).double() for model in models]
    expected = sum(weight @ gram for weight, gram in zip(weights, shrunk, strict=True)) @ torch.linalg.inv(
        torch.stack(shrunk).sum(0)
    )
    torch.testing.assert_close(
        (merged[tensor].mT if is_transposed else merged[tensor]).double(), expected, rtol=1e-3, atol=1e-5
    )
    table = EMBEDDINGS[name]
    torch.testing.assert_close(merged[table], (models[0][table] + models[1][table]) / 2)


def test_plus_plus_goes_through_all_blocks_and_measures_behind_what_is_merged(
    texts: World, name: str, tmp_path: Path
) -> None:
    outcome = texts.merge(tmp_path / "out", {}, method="regmean_plus_plus")
    texts.merge(tmp_path / "plain", {}, method="regmean")
    merged, plain = read_tensors(tmp_path / "out"), read_tensors(tmp_path / "plain")
    learned = outcome.report["learned"]
    assert isinstance(learned, dict)
    assert (learned["n_stages"], learned["n_tensors"]) == ((2, 16) if name == "t5" else (1, 4))
    if name == "t5":  # its cross-attention sees an encoder that is merged already
        assert not torch.allclose(merged[LAYERS["t5"]], plain[LAYERS["t5"]], atol=1e-4)


@pytest.mark.parametrize("method", ["regmean", "regmean_plus_plus", "localize_and_stitch"])
def test_one_model_comes_back_where_it_is_kept_whole(texts: World, method: str, tmp_path: Path) -> None:
    parameters = (
        {"density": 1.0, "l1": 0.0, "steps": 1, "learning_rate": 1e-6} if method == "localize_and_stitch" else {}
    )
    World(texts.base, texts.models[:1], texts.tasks[:1]).merge(tmp_path / "out", parameters, method=method)
    kept = read_tensors(texts.models[0].path)
    for tensor, value in read_tensors(tmp_path / "out").items():
        torch.testing.assert_close(value, kept[tensor], rtol=1e-6, atol=1e-7, msg=tensor)


# --- learning by the loss -----------------------------------------------------------------------------------------


def test_masks_are_learned_on_texts(texts: World, tmp_path: Path) -> None:
    parameters = {"steps": 5, "density": 0.5, "learning_rate": 1.0, "l1": 0.0}
    outcome = texts.merge(tmp_path / "out", parameters, method="localize_and_stitch", split="train")
    learned = outcome.report["learned"]
    assert isinstance(learned, dict)
    for told in learned["masks"]:  # type: ignore[union-attr]
        losses = [one["loss"] for one in told["losses"]]  # type: ignore[index,call-overload,union-attr]
        assert losses[-1] < losses[0]  # type: ignore[operator]


@pytest.mark.parametrize("method", ["greedy_soup", "lorahub"])
def test_merges_are_tried_by_their_loss_on_texts(texts: World, method: str, tmp_path: Path) -> None:
    parameters: dict[str, Any] = {"metric": "loss"} if method == "greedy_soup" else {"budget": 8}
    reports: list[Progress] = []
    outcome = run(texts.work(tmp_path / "out", parameters, method=method, split="train"), reports)
    learned = outcome.report["learned"]
    assert isinstance(learned, dict)
    if method == "greedy_soup":
        best = max(-mean_loss(texts, model) for model in texts.models)
        assert float(str(learned["score"])) >= best - 1e-6
    assert (tmp_path / "out/coefficients.json").is_file()


def mean_loss(world: World, model: LocalCheckpoint) -> float:
    losses = []
    for task in world.tasks:
        evaluator = load_evaluator(task.spec.kind)
        assert evaluator.open_probe is not None
        probe = evaluator.open_probe(Subject(task, model, model), "train", Models())
        with torch.no_grad():
            losses.append(float(probe.losses(range(probe.n_examples)).double().mean()))
    return sum(losses) / len(losses)
