import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints, NotFinite
from app.domain.jobs import Progress
from app.domain.work import AnalyzeOutcome, AnalyzeWork
from tests.workers import tiny_bert
from workers.pipelines import analyze as pipeline


def make_work(folder: Path, *, seeds: tuple[int, ...] = (1, 2, 3), dtype: torch.dtype = torch.float32) -> AnalyzeWork:
    (folder / "out").mkdir()
    base = tiny_bert.local(tiny_bert.make_encoder(folder / "base", dtype=dtype))
    models = tuple(
        tiny_bert.local(tiny_bert.make_encoder(folder / f"m{seed}", seed=seed, dtype=dtype)) for seed in seeds
    )
    return AnalyzeWork(analysis="task_vector_cosines", base_model=base, models=models, output=folder / "out")


def run(work: AnalyzeWork, *, threads: int = 2) -> AnalyzeOutcome:
    return pipeline.analyze(work, tiny_bert.ignore, threads=threads)


def task_vector(checkpoint: LocalCheckpoint, base: LocalCheckpoint) -> torch.Tensor:
    ours, theirs = (load_file(one.path / "model.safetensors") for one in (checkpoint, base))
    return torch.cat([(ours[name].float() - theirs[name].float()).flatten() for name in sorted(ours)]).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosines_and_norms_are_those_of_the_flattened_task_vectors(tmp_path: Path, dtype: torch.dtype) -> None:
    work = make_work(tmp_path, dtype=dtype)
    data = run(work).data
    vectors = torch.stack([task_vector(model, work.base_model) for model in work.models])
    units = torch.nn.functional.normalize(vectors, dim=1)
    expected = units @ units.T
    torch.testing.assert_close(torch.tensor(data["cosines"], dtype=torch.float64), expected, rtol=0, atol=1e-12)
    assert data["norms"] == pytest.approx(vectors.norm(dim=1).tolist())
    apart = [float(expected[row, column]) for row in range(3) for column in range(3) if row != column]
    assert data["mean_cosine"] == pytest.approx(sum(apart) / 6)
    assert data["mean_absolute_cosine"] == pytest.approx(sum(map(abs, apart)) / 6)
    assert data["n_parameters"] == vectors.shape[1]


def test_model_equal_to_the_base_has_no_cosine(tmp_path: Path) -> None:
    data = run(make_work(tmp_path, seeds=(0, 1))).data
    assert data["cosines"] == [[None, None], [None, 1.0]]
    assert data["norms"][0] == 0.0  # type: ignore[index]
    assert data["mean_cosine"] is None


def test_report_and_figure_are_written_and_listed(tmp_path: Path) -> None:
    work = make_work(tmp_path).model_copy(update={"labels": ("one", "two", "three")})
    outcome = run(work)
    assert [file.path for file in outcome.files] == ["cosines.svg", "report.json"]
    assert [file.size_bytes for file in outcome.files] == [
        (tmp_path / "out" / f.path).stat().st_size for f in outcome.files
    ]
    assert json.loads((tmp_path / "out/report.json").read_text()) == outcome.data
    assert "three" in (tmp_path / "out/cosines.svg").read_text()
    assert outcome.data["models"] == [model.manifest.digest for model in work.models]


def test_equal_work_gives_equal_bytes_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_PIECE_ELEMENTS", 100)
    work = make_work(tmp_path)
    assert run(work, threads=1) == run(work, threads=3)


def test_integer_tensors_take_no_part(tmp_path: Path) -> None:
    work = make_work(tmp_path, seeds=(1, 2))
    paths = [one.path / "model.safetensors" for one in (work.base_model, *work.models)]
    for index, path in enumerate(paths):
        save_file({**load_file(path), "position_ids": torch.arange(4) + index}, path, metadata={"format": "pt"})
    with_integers = work.model_copy(
        update={
            "base_model": tiny_bert.local(work.base_model.path),
            "models": tuple(tiny_bert.local(model.path) for model in work.models),
        }
    )
    before = run(with_integers).data
    assert before["n_parameters"] == task_vector(work.models[0], work.base_model).numel() - 4


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    reports: list[Progress] = []
    pipeline.analyze(make_work(tmp_path), reports.append)
    assert reports[0].stage == "comparing task vectors"
    assert reports[0].unit == "bytes"


def test_models_of_another_shape_are_refused(tmp_path: Path) -> None:
    work = make_work(tmp_path, seeds=(1,))
    wide = tiny_bert.local(tiny_bert.make_encoder(tmp_path / "wide", hidden_size=12))
    with pytest.raises(IncompatibleCheckpoints, match=r"models\[1\] does not have the base model's tensors"):
        run(work.model_copy(update={"models": (*work.models, wide)}))


def test_nan_is_refused_with_the_tensor_s_name(tmp_path: Path) -> None:
    work = make_work(tmp_path, seeds=(1,))
    path = work.models[0].path / "model.safetensors"
    weights = load_file(path)
    weights["pooler.dense.bias"][3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    broken = work.model_copy(update={"models": (tiny_bert.local(work.models[0].path),)})
    with pytest.raises(NotFinite, match=r"'pooler.dense.bias' of models\[0\].* is nan at flat index 3"):
        run(broken)
