"""The example tasks are what examples/README.md says."""

import re

import pytest

from app.domain.catalog import load_catalog
from tests.workers import example_tasks
from workers.datasets.text import read_labeled_texts

README = (example_tasks.FOLDER.parent / "README.md").read_text(encoding="utf-8")
LICENSES = (example_tasks.FOLDER.parent / "LICENSES.md").read_text(encoding="utf-8")


def test_there_are_five() -> None:
    assert example_tasks.NAMES == ("emoji_name", "language_id", "movie_sent", "product_sent", "wordnet_sense")


@pytest.mark.parametrize("name", example_tasks.NAMES)
def test_readme_tells_classes_and_sizes(name: str) -> None:
    task = example_tasks.load(name)
    sizes = [len(read_labeled_texts(task, split, max_characters=400)) for split in ("train", "validation", "test")]
    row = re.search(rf"^\| `{name}` \|(.*)\|$", README, re.MULTILINE)
    assert row is not None
    told = [int(cell.replace(",", "")) for cell in row[1].split("|")[:4]]
    assert told == [len(task.spec.classes), *sizes]


@pytest.mark.parametrize("name", example_tasks.NAMES)
def test_splits_share_at_most_one_text_and_have_all_classes(name: str) -> None:
    task = example_tasks.load(name)
    splits = [read_labeled_texts(task, split, max_characters=400) for split in ("train", "validation", "test")]
    texts = [set(split.texts) for split in splits]
    assert len(texts[0] & texts[2]) <= 1  # README.md names the one of product_sent
    assert not texts[1] & texts[2]
    assert all(set(split.labels) == set(range(len(task.spec.classes))) for split in splits)


@pytest.mark.parametrize("name", example_tasks.NAMES)
def test_task_is_valid_for_its_evaluator(name: str) -> None:
    spec = example_tasks.load(name).spec
    load_catalog().check_task(
        spec.kind,
        head=spec.head.kind,
        metric=spec.metric,
        n_classes=len(spec.classes),
        preprocessing=spec.preprocessing,
    )
    assert spec.head.kind == "label_prompts"
    assert len(spec.head.prompts) == len(spec.classes)


@pytest.mark.parametrize("name", example_tasks.NAMES)
def test_source_and_license_are_told(name: str) -> None:
    assert f"| `{name}` |" in LICENSES
