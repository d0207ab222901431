"""The harness as an evaluator: without it a clear refusal; with it (an optional extra) its scores on own files."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from app.domain.errors import InvalidDataset, InvalidParameters, ModelNotRunnable
from app.domain.tasks import LocalTask, Measurement, OwnHead
from tests.workers import tiny_bert, tiny_language
from workers.checkpoints.model import Models
from workers.evaluators import lm_eval
from workers.model_contract import Subject

CHOICES = ("cat", "red bird", "the dog")
ROWS = [
    {"question": question, "options": list(CHOICES), "answer": index % 3}
    for index, question in enumerate(("the", "a cat is", "red is a", "blue", "dog runs", "green bird"))
]
WORDS = {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", "doc_to_choice": "{{options}}"}
needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the optional extra `harness` is not installed")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language.make_gpt2(tmp_path_factory.mktemp("gpt2") / "gpt2", seed=3)


def make_task(folder: Path, metric: str = "acc", **preprocessing: Any) -> LocalTask:
    files = {split: tiny_bert.write_rows(folder / f"{split}.jsonl", ROWS) for split in ("train", "test")}
    given = {**WORDS, **preprocessing}
    return tiny_bert.as_task(files, kind="lm-eval", classes=(), head=OwnHead(), metric=metric, preprocessing=given)


def measure(task: LocalTask, folder: Path) -> Measurement:
    checkpoint = tiny_bert.local(folder)
    subject = Subject(task, checkpoint, checkpoint)
    (found,) = lm_eval.measure.measure(subject, "test", Models(), tiny_bert.ignore_examples)
    return found


def choose(folder: Path, prompt: str) -> int:
    """Return the likeliest choice after a prompt: the sum of its tokens' log p."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    scores = []
    for choice in CHOICES:
        context, answer = tokenizer(prompt)["input_ids"], tokenizer(choice)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(answer)))
    return max(range(3), key=scores.__getitem__)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="the harness is installed")
def test_without_the_harness_a_job_says_what_to_install(tmp_path: Path, gpt2: Path) -> None:
    with pytest.raises(ModelNotRunnable, match=r"harness, which is not installed .*amalgam\[harness\]"):
        measure(make_task(tmp_path), gpt2)


def test_a_metric_of_another_output_type_is_refused(tmp_path: Path, gpt2: Path) -> None:
    with pytest.raises(InvalidParameters, match="output_type multiple_choice has acc and acc_norm"):
        measure(make_task(tmp_path, "exact_match"), gpt2)


@needs_harness
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_the_likeliest_choice_is_compared(tmp_path: Path, gpt2: Path, batch_size: int) -> None:
    found = measure(make_task(tmp_path, batch_size=batch_size), gpt2)
    hits = sum(choose(gpt2, str(row["question"])) == row["answer"] for row in ROWS)
    assert (found.name, found.n, found.details.n_correct) == ("acc", 6, hits)


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_examples_are_shown_from_the_train_split(tmp_path: Path, gpt2: Path) -> None:
    found = measure(make_task(tmp_path, num_fewshot=1, fewshot_delimiter=" "), gpt2)
    shown = f"{ROWS[0]['question']} {CHOICES[0]} "
    hits = sum(choose(gpt2, shown + str(row["question"])) == row["answer"] for row in ROWS)
    assert found.details.n_correct == hits


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_answers_are_generated(tmp_path: Path, gpt2: Path) -> None:
    task = make_task(tmp_path, "exact_match", output_type="generate_until", max_new_tokens=2, doc_to_target="no such")
    assert measure(task, gpt2).value == 0.0


def generate(folder: Path, prompt: str, n_tokens: int = 3) -> list[str]:
    """Return the words of the greedy answer to a prompt."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(prompt)["input_ids"]
    n_given = len(tokens)
    for _ in range(n_tokens):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(tokens[n_given:], skip_special_tokens=True)).split()


def measure_answers(folder: Path, model: Path, targets: list[str], **preprocessing: Any) -> Measurement:
    rows = [{**row, "target": target} for row, target in zip(ROWS, targets, strict=True)]
    file = tiny_bert.write_rows(folder / "test.jsonl", rows)
    given = {"doc_to_text": "{{question}}", "doc_to_target": "{{target}}", "output_type": "generate_until"}
    settings = {**given, "max_new_tokens": 3, **preprocessing}
    task = tiny_bert.as_task(
        {"test": file}, kind="lm-eval", classes=(), head=OwnHead(), metric="exact_match", preprocessing=settings
    )
    return measure(task, model)


def passing(*steps: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "extract", "filter": [*steps, {"function": "take_first"}]}]


@needs_harness
@pytest.mark.parametrize("group_select", [0, -1])
@pytest.mark.filterwarnings("ignore")
def test_a_word_of_an_answer_is_extracted(tmp_path: Path, gpt2: Path, group_select: int) -> None:
    words = [generate(gpt2, str(row["question"])) for row in ROWS]
    targets = [found[group_select] if found else "none" for found in words]
    targets[0] = "no such"
    assert any(len(found) > 1 for found in words)  # the whole answer is not the word
    step = {"function": "regex", "regex_pattern": r"(\S+)", "group_select": group_select, "fallback": "none"}

    found = measure_answers(tmp_path, gpt2, targets, filter_list=passing(step))
    whole = measure_answers(tmp_path, gpt2, targets)

    assert (found.n, found.details.n_correct) == (6, 5)
    assert whole.details.n_correct == sum(" ".join(w) == t for w, t in zip(words, targets, strict=True))


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_what_is_extracted_passes_through_the_other_functions_in_order(tmp_path: Path, gpt2: Path) -> None:
    firsts = [(generate(gpt2, str(row["question"])) or ["none"])[0] for row in ROWS]
    mapping = {first.upper(): f"answer {index}" for index, first in enumerate(sorted(set(firsts)))}
    targets = [mapping[first.upper()] for first in firsts]
    steps: list[dict[str, Any]] = [
        {"function": "regex", "regex_pattern": r"(\S+)", "fallback": "none"},
        {"function": "uppercase"},
        {"function": "map", "mapping_dict": mapping},
    ]

    assert measure_answers(tmp_path, gpt2, targets, filter_list=passing(*steps)).value == 1.0


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_case_and_expressions_are_left_out_of_the_comparison(tmp_path: Path, gpt2: Path) -> None:
    targets = [f"#{' '.join(generate(gpt2, str(row['question'])))}".upper() for row in ROWS]
    asked = {"ignore_case": True, "regexes_to_ignore": ["^#", r"\s"]}

    assert measure_answers(tmp_path, gpt2, targets, **asked).value == 1.0
    assert measure_answers(tmp_path, gpt2, targets).value == 0.0


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        ({"filter_list": passing()}, "has filter_list, which is of generated answers, and output_type multiple_choice"),
        ({"ignore_case": True}, "has ignore_case, which is of generated answers"),
        (
            {"output_type": "generate_until", "filter_list": passing({"function": "regex", "mapping_dict": {}})},
            "has a filter regex with mapping_dict; it takes regex_pattern, group_select, fallback",
        ),
        (
            {"output_type": "generate_until", "filter_list": passing({"function": "lowercase", "fallback": "x"})},
            "has a filter lowercase with fallback; it takes no options",
        ),
    ],
)
def test_filters_that_say_nothing_here_are_refused(
    tmp_path: Path, gpt2: Path, preprocessing: dict[str, Any], words: str
) -> None:
    metric = "exact_match" if "output_type" in preprocessing else "acc"
    with pytest.raises(InvalidParameters, match=words):
        measure(make_task(tmp_path, metric, **preprocessing), gpt2)


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_an_expression_that_is_none_is_refused(tmp_path: Path, gpt2: Path) -> None:
    step = {"function": "regex", "regex_pattern": "("}
    with pytest.raises(InvalidParameters, match=r"The harness cannot run task 'kind': .*missing \)"):
        measure_answers(tmp_path, gpt2, ["x"] * 6, filter_list=passing(step))


@needs_harness
@pytest.mark.parametrize("template", ["{{qestion}}", "{{''.__class__.__mro__[1].__subclasses__()}}"])
@pytest.mark.filterwarnings("ignore")
def test_templates_that_fail_or_reach_out_are_refused(tmp_path: Path, gpt2: Path, template: str) -> None:
    with pytest.raises(InvalidParameters, match=r"The harness cannot run task 'kind': (Undefined|Security)Error"):
        measure(make_task(tmp_path, doc_to_text=template), gpt2)


@needs_harness
def test_examples_need_a_train_split(tmp_path: Path, gpt2: Path) -> None:
    task = make_task(tmp_path, num_fewshot=1)
    alone = task.model_copy(update={"files": {"test": task.files["test"]}})
    with pytest.raises(InvalidDataset, match="shows 1 examples of its train split, and has none"):
        measure(alone, gpt2)
