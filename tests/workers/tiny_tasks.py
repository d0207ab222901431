"""A tiny task for each kind of model that is trained: images, prototypes of images, answers, prose."""

from pathlib import Path

from app.domain.tasks import LocalTask, OwnHead, PrototypesHead
from tests.workers import tiny_bert, tiny_vision


def make_images(folder: Path) -> LocalTask:
    return tiny_vision.make_task(folder)


def make_prototypes(folder: Path) -> LocalTask:
    return tiny_vision.make_task(folder, head=PrototypesHead(kind="prototypes", shots=2))


def make_answers(folder: Path) -> LocalTask:
    return tiny_bert.make_task(folder, head=OwnHead(), kind="text2text", metric="exact_match")


def make_texts(folder: Path) -> LocalTask:
    cut = {"max_tokens": 8, "stride": 4}
    return tiny_bert.make_task(
        folder, head=OwnHead(), kind="perplexity", classes=(), metric="perplexity", preprocessing=cut
    )
