"""Evaluators and techniques are found by the names of their cards."""

import pytest

from app.domain.errors import EvaluatorNotFound, UnknownTechnique
from workers.catalog import load_evaluator, load_finetuner
from workers.evaluators import text_classification
from workers.finetuning import full


def test_an_evaluator_is_loaded_by_the_kind_of_its_tasks() -> None:
    assert load_evaluator("text-classification") is text_classification.measure


def test_a_technique_is_loaded_by_its_name() -> None:
    assert load_finetuner("full") is full.train


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(EvaluatorNotFound, match="Did you mean 'text-classification'"):
        load_evaluator("text-classifier")
    with pytest.raises(UnknownTechnique, match="Did you mean 'full'"):
        load_finetuner("fulll")
