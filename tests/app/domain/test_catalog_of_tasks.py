"""The check of tasks and fine-tunings against the committed catalog."""

import pytest

from app.domain.catalog import load_catalog
from app.domain.errors import Invalid, InvalidParameters, UnknownTaskKind, UnknownTechnique

CATALOG = load_catalog()


def check_task(
    kind: str = "text-classification",
    head: str = "label_prompts",
    metric: str = "accuracy",
    preprocessing: dict[str, int | str] | None = None,
    n_classes: int = 2,
) -> dict[str, object]:
    given = dict(preprocessing or {})
    return dict(CATALOG.check_task(kind, head=head, metric=metric, n_classes=n_classes, preprocessing=given)[1])


def test_preprocessing_gets_its_defaults() -> None:
    assert check_task(preprocessing={"max_tokens": 16}) == {
        "batch_size": 32,
        "max_characters": 400,
        "max_tokens": 16,
        "normalize": True,
        "pooling": "mean",
    }


def test_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownTaskKind) as caught:
        check_task(kind="text-clasification")
    (problem,) = caught.value.errors
    assert problem.pointer == "/kind"
    assert problem.did_you_mean == "text-classification"


def test_unknown_head_and_metric_are_refused_together() -> None:
    with pytest.raises(Invalid) as caught:
        check_task(head="xyz", metric="acuracy")
    assert [(problem.pointer, problem.did_you_mean) for problem in caught.value.errors] == [
        ("/head/kind", None),
        ("/metric", "accuracy"),
    ]
    assert "expected one of: label_prompts, prototypes, linear, own" in caught.value.errors[0].message


@pytest.mark.parametrize(
    ("kind", "head", "n_classes", "pointer"),
    [
        ("text-classification", "own", 0, "/classes"),
        ("perplexity", "own", 2, "/classes"),
        ("text2text", "label_prompts", 2, "/head/kind"),
    ],
)
def test_classes_and_heads_go_with_the_kind(kind: str, head: str, n_classes: int, pointer: str) -> None:
    metric = CATALOG.evaluator(kind).metrics[0]
    with pytest.raises(Invalid) as caught:
        check_task(kind, head, metric, n_classes=n_classes)
    assert [problem.pointer for problem in caught.value.errors] == [pointer]


def test_every_fault_of_the_preprocessing_is_named() -> None:
    with pytest.raises(InvalidParameters) as caught:
        check_task(preprocessing={"max_token": 16, "pooling": "max"})
    assert {problem.pointer for problem in caught.value.errors} == {
        "/preprocessing/max_token",
        "/preprocessing/pooling",
    }
    assert {problem.did_you_mean for problem in caught.value.errors} == {"max_tokens", None}


def test_fine_tuning_parameters_get_their_defaults() -> None:
    card, parameters = CATALOG.check_finetune("full", {"steps": 10})
    assert card.name == "full"
    assert parameters["steps"] == 10
    assert parameters["learning_rate"] == 5e-5


def test_unknown_technique_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownTechnique, match="There is no fine-tuning technique 'ful'") as caught:
        CATALOG.check_finetune("ful", {})
    assert caught.value.errors[0].pointer == "/technique"


def test_fine_tuning_parameters_out_of_range_are_named_with_the_range() -> None:
    with pytest.raises(InvalidParameters) as caught:
        CATALOG.check_finetune("full", {"learning_rate": 2, "step": 3})
    problems = {problem.pointer: problem for problem in caught.value.errors}
    assert "expected a number > 0 and <= 1" in problems["/parameters/learning_rate"].message
    assert problems["/parameters/step"].did_you_mean == "steps"
