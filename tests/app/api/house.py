"""The API in this process, on real tables and a real store, with jobs run here and at once instead of by a worker.

`House.work` does what a worker's supervisor does, step by step, without a process per job: the routes are tested here,
the supervisor in tests/faults, both together in tests/journeys.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from safetensors.numpy import save_file

from app.config import Settings
from app.db.migrate import upgrade
from app.domain.identifiers import new_id
from app.domain.jobs import ResourceClass
from app.main import create_app
from app.services import parts, reaping, running
from app.services.merges import complete_waiter
from app.services.running import Claim, Keepers, WorkerIdentity
from app.services.wiring import Wiring
from tests.attempts import run_attempt
from tests.workers import tiny_bert

Document = dict[str, Any]
Tensors = Mapping[str, NDArray[Any]]


class House:
    """A service of one test's own."""

    def __init__(self, folder: Path, database_url: str = "", **settings: Any) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        home = folder / "home"
        home.mkdir()
        self.settings = Settings(home=home, database_url=database_url, file_roots=(self.data,), **settings)
        upgrade(self.settings.database_url)
        self.app: FastAPI = create_app(self.settings)
        self.client = TestClient(self.app, base_url="http://localhost", raise_server_exceptions=False)
        self.wiring: Wiring = self.app.state.wiring
        self.keepers = Keepers(self.wiring.sessions, self.wiring.storage, self.wiring.sources)
        self.worker = WorkerIdentity(new_id("wrk"), "here", tuple(ResourceClass))

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()
        self.wiring.queue.close()
        self.wiring.sessions.engine.dispose()

    # --- calling ------------------------------------------------------------------------------------------------------

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET a path."""
        return self.client.get(path, **options)  # type: ignore[return-value]  # the client's own response type

    def post(self, path: str, body: object | None = None, **options: Any) -> httpx.Response:
        """POST a JSON body."""
        return self.client.post(path, json=body, **options)  # type: ignore[return-value]

    def made(self, path: str, body: object, **options: Any) -> Document:
        """POST a body that must be accepted, and return the answer."""
        response = self.post(path, body, **options)
        assert response.status_code in (200, 201, 202), response.text
        document: Document = response.json()
        return document

    def read(self, path: str, **options: Any) -> Document:
        """GET what must be there."""
        response = self.get(path, **options)
        assert response.status_code == 200, response.text
        document: Document = response.json()
        return document

    # --- working ------------------------------------------------------------------------------------------------------

    def work(self) -> list[Document]:
        """Run all jobs that can be run, in order, and return them as they ended."""
        ended: list[str] = []
        while (claim := self.claim()) is not None:
            self.run(claim)
            ended.append(claim.job.id)
            if claim.job.parent is not None:
                parts.settle(self.wiring.sessions, self.wiring.queue, claim.job.parent)
            reaping.settle_waiters(self.wiring.sessions, self.wiring.queue, complete_waiter)
        return [self.read(f"/v1/jobs/{job_id}") for job_id in ended]

    def claim(self) -> Claim | None:
        """Claim the job that is to run next."""
        return running.claim(self.wiring.sessions, self.worker, lease_seconds=600)

    def finish(self, path: str, body: object, **options: Any) -> Document:
        """POST a job, run everything, and return the job as it ended."""
        job = self.made(path, body, **options)
        self.work()
        return self.read(f"/v1/jobs/{job['id']}")

    def run(self, claim: Claim) -> None:
        """Do one attempt of a job."""
        run_attempt(self.keepers, claim, self.folder / "scratch" / claim.job.id)

    # --- having -------------------------------------------------------------------------------------------------------

    def write(self, name: str, tensors: Tensors) -> str:
        """Write a checkpoint folder and return its URI."""
        folder = self.data / name
        folder.mkdir()
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder.as_uri()

    def register(self, name: str, tensors: Tensors, **fields: object) -> str:
        """Register a checkpoint, import it, and return its id."""
        uri = self.write(f"{name}-{new_id('key')}", tensors)
        begun = self.made("/v1/checkpoints", {"uri": uri, "name": name, **fields})
        self.work()
        checkpoint: Document = self.read(f"/v1/checkpoints/{begun['checkpoint']['id']}")
        assert checkpoint["state"] == "ready", checkpoint["problem"]
        return str(checkpoint["id"])

    def register_folder(self, name: str, folder: Path, **fields: object) -> str:
        """Register a folder that lies in `data`, import it, and return its id."""
        begun = self.made("/v1/checkpoints", {"uri": folder.as_uri(), "name": name, **fields})
        self.work()
        return str(begun["checkpoint"]["id"])

    def family(self, n_models: int = 2, *, task: str | None = None) -> list[str]:
        """Register a base (`base`) and models near it (`model-0`, …); return the names."""
        base = draw(0)
        self.register("base", base)
        for index in range(n_models):
            near = {name: tensor + draw(index + 1)[name] for name, tensor in base.items()}
            self.register(f"model-{index}", near, base_checkpoint="base", **({"task": task} if task else {}))
        return ["base", *(f"model-{index}" for index in range(n_models))]

    def bert(self, name: str = "bert", *, seed: int = 0, **fields: object) -> str:
        """Register a tiny BERT and return its id."""
        return self.register_folder(name, tiny_bert.make_encoder(self.data / name, seed=seed), **fields)

    def task_body(self, name: str = "kind", **changes: object) -> Document:
        """Write the data of a task and return the body that makes it."""
        folder = self.data / f"task-{name}"
        if not folder.exists():
            rows = tiny_bert.make_rows()
            for split, part in (("train", rows), ("validation", rows[::2]), ("test", rows[1::2])):
                tiny_bert.write_rows(folder / f"{split}.jsonl", part)
        body: Document = {
            "name": name,
            "kind": "text-classification",
            "dataset": {split: (folder / f"{split}.jsonl").as_uri() for split in ("train", "validation", "test")},
            "classes": list(tiny_bert.CLASSES),
            "head": {"kind": "label_prompts", "prompts": list(tiny_bert.PROMPTS)},
            "preprocessing": {"max_tokens": 8},
        }
        return {**body, **changes}


def draw(seed: int, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, NDArray[np.float32]]:
    """Return tensors of small random numbers; the same for a seed."""
    random = np.random.default_rng(seed)
    chosen = shapes or {"bias": (3,), "weight": (4, 3)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in sorted(chosen.items())}


@contextmanager
def open_house(folder: Path, database_url: str = "", **settings: Any) -> Iterator[House]:
    """Open a house and close it at the end."""
    house = House(folder, database_url, **settings)
    try:
        yield house
    finally:
        house.close()
