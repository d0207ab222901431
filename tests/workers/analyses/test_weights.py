"""The analyses of weights alone, against brute force in NumPy over whole flattened models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints, InvalidParameters, NotFinite
from app.domain.parameters import DENSE_PATTERNS
from tests.workers import tiny_bert
from tests.workers.analyses.works import Vectors, make_models, make_work, open_source, read_vectors, run, source_of
from tests.workers.references.awd_task_arithmetic import find_redundant
from workers.catalog import load_analysis
from workers.pipelines.analyze import DATA_FILE
from workers.statistics import singular_values
from workers.statistics.layers import Layer, list_layers
from workers.statistics.views import TensorSource

N = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[LocalCheckpoint]:
    return make_models(tmp_path_factory.mktemp("models"), N)


@pytest.fixture(scope="module")
def vectors(models: list[LocalCheckpoint]) -> Vectors:
    return read_vectors(models)


def report(kind: str, models: list[LocalCheckpoint], **parameters: Any) -> dict[str, Any]:
    """Return what the analysis finds; files and figures are test_every_analysis' matter."""
    return examine(kind, open_source(models), **parameters)


def examine(kind: str, source: TensorSource, **parameters: Any) -> dict[str, Any]:
    analysis = load_analysis(kind)
    return analysis.examine(source, analysis.parameters.model_validate(parameters)).model_dump(mode="json")


def flat(vectors: Vectors, prefix: str = "") -> NDArray[np.float64]:
    return np.concatenate([v.reshape(len(v), -1) for name, v in vectors.items() if name.startswith(prefix)], axis=1)


def cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    units: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float64] = np.einsum("ik,jk->ij", units, units)
    return found


# --- layers -----------------------------------------------------------------------------------------------------------


def test_layers_stand_in_the_order_of_the_depth() -> None:
    names = ["pooler.w", "encoder.layer.10.w", "encoder.layer.2.w", "embeddings.w"]
    names += [f"encoder.layer.{index}.w" for index in range(11) if index not in (2, 10)]
    found = list(list_layers(names))
    assert [layer.name for layer in found] == ["first", *(f"encoder.layer.{i}" for i in range(11)), "last"]
    assert found[11] == Layer(name="encoder.layer.10", tower="encoder.layer", index=10)


def test_without_blocks_each_tensor_is_a_layer() -> None:
    assert list_layers(["b", "a"]) == {Layer(name="a"): ("a",), Layer(name="b"): ("b",)}


# --- cosines ----------------------------------------------------------------------------------------------------------


def test_cosines_are_those_of_flattened_task_vectors(models: list[LocalCheckpoint], vectors: Vectors) -> None:
    found = report("task_vector_cosines", models)
    expected = cosines(flat(vectors))
    np.testing.assert_allclose(found["cosines"], expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found["norms"], np.linalg.norm(flat(vectors), axis=1), rtol=1e-6)
    pairs = expected[~np.eye(N, dtype=bool)]
    assert found["mean_cosine"] == pytest.approx(pairs.mean())
    assert found["mean_absolute_cosine"] == pytest.approx(np.abs(pairs).mean())
    assert found["n_parameters"] == flat(vectors).shape[1]
    layer = next(one for one in found["layers"] if one["layer"]["index"] == 1)
    np.testing.assert_allclose(layer["cosines"], cosines(flat(vectors, "encoder.layer.1.")), rtol=0, atol=1e-7)
    tensor = found["tensors"][0]
    first = flat(vectors, tensor["name"])
    if first.any(axis=1).all():
        np.testing.assert_allclose(tensor["cosines"], cosines(first), rtol=0, atol=1e-7)


def test_transforms_show_the_cosines_before_and_after_them(
    models: list[LocalCheckpoint], vectors: Vectors, tmp_path: Path
) -> None:
    asked = {"norm_penalty": 0.1, "learning_rate": 0.05, "steps": 40, "scope": "global", "normalize": True}
    steps = [{"name": "awd", "parameters": asked}]
    work = make_work("task_vector_cosines", models, tmp_path, parameters={"transforms": steps})

    data = run(work).data

    before, after = data["cosines"], data["changed"]
    assert isinstance(after, dict)
    expected = cosines(flat(vectors) - find_redundant(flat(vectors), asked))
    np.testing.assert_allclose(np.array(after["cosines"]), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.array(before), cosines(flat(vectors)), rtol=0, atol=1e-7)
    file = json.loads((work.output / DATA_FILE).read_text())
    assert [one["layer"] for one in file["changed_layers"]] == [one["layer"] for one in file["layers"]]
    assert len(file["changed_tensors"]) == len(file["tensors"])


def test_without_transforms_nothing_is_changed(models: list[LocalCheckpoint]) -> None:
    found = report("task_vector_cosines", models)
    assert (found["changed"], found["changed_layers"], found["changed_tensors"]) == (None, [], [])


def test_a_model_equal_to_the_base_has_no_cosine(models: list[LocalCheckpoint]) -> None:
    found = report("task_vector_cosines", [models[0], models[0], models[1]])
    assert found["cosines"] == [[None, None], [None, 1.0]]
    assert found["norms"][0] == 0.0
    assert found["mean_cosine"] is None


# --- sign conflict ----------------------------------------------------------------------------------------------------


def test_signs_are_counted_by_hand() -> None:
    base = {"w": np.zeros(8, dtype=np.float32)}
    rows = [
        [1, 1, 0, 0, -1, 2, 1, 0],
        [1, -1, 1, 0, -2, -2, 1, 0],
        [1, 0, 0, 0, 1, 0, 1, 0],
    ]
    models = [{"w": np.array(row, dtype=np.float32)} for row in rows]
    found = examine("sign_conflict", source_of(base, models))
    # changed: columns 0, 1, 2, 4, 5, 6; shared: 0, 1, 4, 5, 6; of opposite signs: 1, 4, 5
    assert (found["n_elements"], found["n_changed"], found["n_shared"], found["n_conflicting"]) == (8, 6, 5, 3)
    assert found["conflict_share"] == 3 / 5
    # by chance: two models in columns 1, 5 (1/2), three in 0, 4, 6 (3/4)
    assert found["chance_share"] == pytest.approx((2 * 0.5 + 3 * 0.75) / 5)
    assert found["n_both"] == [[5, 5, 3], [5, 6, 3], [3, 3, 3]]
    assert found["pairs"] == [[0.0, 2 / 5, 1 / 3], [2 / 5, 0.0, 1 / 3], [1 / 3, 1 / 3, 0.0]]


@pytest.mark.parametrize("density", [1.0, 0.25])
def test_sign_conflict_is_that_of_trimmed_task_vectors(
    models: list[LocalCheckpoint], vectors: Vectors, density: float
) -> None:
    found = report("sign_conflict", models, density=density)
    rows = flat(vectors)
    kept = int(density * rows.shape[1] + 1e-9)
    order = np.argsort(-np.abs(rows), axis=1, kind="stable")
    trimmed = np.zeros_like(rows)
    for row, first in enumerate(order[:, :kept]):
        trimmed[row, first] = rows[row, first]
    positive, negative = (trimmed > 0).sum(0), (trimmed < 0).sum(0)
    assert found["n_conflicting"] == int(((positive > 0) & (negative > 0)).sum())
    assert found["n_shared"] == int((positive + negative >= 2).sum())
    both = (trimmed[0] != 0) & (trimmed[2] != 0)
    assert found["pairs"][0][2] == pytest.approx(float((trimmed[0] * trimmed[2] < 0)[both].mean()))
    assert sum(one["n_conflicting"] for one in found["layers"]) == found["n_conflicting"]
    assert sum(one["n_conflicting"] for one in found["tensors"]) == found["n_conflicting"]


# --- norms ------------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_layers(models: list[LocalCheckpoint], vectors: Vectors) -> None:
    found = report("norms_by_layer", models)
    np.testing.assert_allclose(found["norms"], np.linalg.norm(flat(vectors), axis=1), rtol=1e-6)
    layer = next(one for one in found["layers"] if one["layer"]["index"] == 0)
    np.testing.assert_allclose(layer["norms"], np.linalg.norm(flat(vectors, "encoder.layer.0."), axis=1))
    base = load_file(models[0].path / "model.safetensors")
    squares = sum(float(t.double().square().sum()) for name, t in base.items() if name.startswith("encoder.layer.0."))
    assert layer["base_norm"] == pytest.approx(squares**0.5)
    assert layer["relative_norms"] == pytest.approx([norm / squares**0.5 for norm in layer["norms"]])


# --- spectrum ---------------------------------------------------------------------------------------------------------


def test_spectra_are_those_of_an_svd(models: list[LocalCheckpoint], vectors: Vectors) -> None:
    found = report("spectrum", models, energy=0.8, n_values=3)
    names = [name for name, v in vectors.items() if v.ndim == 3 and "embed" not in name]
    assert [one["name"] for one in found["matrices"]] == names
    for one in found["matrices"]:
        for row, model in zip(vectors[one["name"]], one["models"], strict=True):
            values = np.linalg.svd(row, compute_uv=False)
            np.testing.assert_allclose(model["singular_values"], values[:3], rtol=1e-9)
            shares = values[values > 0] / values.sum()
            assert model["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
            assert model["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2)
            assert model["rank_of_energy"] == int(np.searchsorted(np.cumsum(values**2), 0.8 * (values**2).sum())) + 1


def test_the_energy_of_equal_values_is_a_straight_line() -> None:
    values = torch.ones(4, dtype=torch.float64)
    assert singular_values.energy_curve(values, 9).tolist() == pytest.approx([i / 8 for i in range(9)])
    assert singular_values.effective_rank(values) == pytest.approx(4.0)
    assert [singular_values.rank_of_energy(values, share) for share in (0.25, 0.26, 1.0)] == [1, 2, 4]


def test_a_zero_matrix_has_rank_zero() -> None:
    base = {"w": np.eye(3, dtype=np.float32)}
    found = examine("spectrum", source_of(base, [base]))
    assert found["effective_ranks"] == found["stable_ranks"] == found["ranks_of_energy"] == [0.0]
    assert found["energy_curves"] == [[]]


def test_no_matrix_at_all_is_refused() -> None:
    base = {"embed": np.eye(3, dtype=np.float32)}
    assert "*embed*" in DENSE_PATTERNS
    with pytest.raises(InvalidParameters, match="dense_patterns fits every tensor of two dimensions"):
        examine("spectrum", source_of(base, [base]))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_integer_tensors_take_no_part(tmp_path: Path) -> None:
    models = make_models(tmp_path, 1)
    before = run(make_work("norms_by_layer", models, tmp_path)).data["norms"]
    for index, one in enumerate(models):
        path = one.path / "model.safetensors"
        save_file({**load_file(path), "position_ids": torch.arange(4) + index}, path, metadata={"format": "pt"})
    with_integers = [tiny_bert.local(one.path) for one in models]
    assert run(make_work("norms_by_layer", with_integers, tmp_path)).data["norms"] == before


def test_models_of_another_shape_are_refused(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    wide = tiny_bert.local(tiny_bert.make_encoder(tmp_path / "wide", hidden_size=12))
    with pytest.raises(IncompatibleCheckpoints, match=r"models\[1\] does not have the base model's tensors"):
        run(make_work("norms_by_layer", [*models[:2], wide], tmp_path))


def test_nan_is_refused_with_the_tensor_s_name(tmp_path: Path) -> None:
    models = make_models(tmp_path, 1)
    path = models[1].path / "model.safetensors"
    weights = load_file(path)
    weights["pooler.dense.bias"][3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(NotFinite, match=r"'pooler.dense.bias' of models\[0\].* is nan at flat index 3"):
        run(make_work("norms_by_layer", [models[0], tiny_bert.local(models[1].path)], tmp_path))
