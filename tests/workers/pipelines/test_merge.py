"""The merge pipeline: files that are complete and described, tensors that are exact, faults that are named."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import InputChanged, JobError, JobInternal, NotFinite
from app.domain.jobs import Progress
from app.domain.parameter_checks import fill_defaults
from tests.workers.files import ignore, read_tensors, write_checkpoint
from tests.workers.pipelines.merging import ADD_ALL, MergeOf, method_of
from tests.workers.tiny_bert import make_encoder
from workers.catalog import load_method
from workers.contract import MergeContext
from workers.pipelines.importing import import_checkpoint
from workers.stored import Models

Tensors = dict[str, Tensor]


def write(folder: Path, *models: Tensors, n_shards: int = 1) -> list[LocalCheckpoint]:
    return [write_checkpoint(folder / f"m{index}", tensors, n_shards=n_shards) for index, tensors in enumerate(models)]


def draw(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"a": (7, 9), "b": (5,), "c": (), "d": (0, 2), "e": (2, 3, 2, 2)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


# --- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [1, 100, 5_000_000_000])
def test_the_manifest_is_what_an_import_of_the_output_finds(shard_bytes: int, tmp_path: Path) -> None:
    base, model = write(tmp_path, draw(0), draw(1))
    merge = MergeOf(changes={"shard_bytes": shard_bytes}).plan(base, model)
    manifest, _ = merge.run(tmp_path / "out")
    assert manifest == import_checkpoint(tmp_path / "out", ignore)
    assert sorted(entry.path for entry in manifest.files) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_shards_have_an_index_and_nothing_stale_is_copied(tmp_path: Path) -> None:
    base, model = write(tmp_path, draw(0), draw(1), n_shards=3)
    (base.path / "README.md").write_text("the base's own")
    base = LocalCheckpoint(id="base", path=base.path, manifest=import_checkpoint(base.path, ignore))
    one, _ = MergeOf().plan(base, model).run(tmp_path / "one")
    assert "model.safetensors.index.json" not in [entry.path for entry in one.files]
    assert "Probe" in (tmp_path / "one" / "README.md").read_text()
    many, _ = MergeOf(changes={"shard_bytes": 100}).plan(base, model).run(tmp_path / "many")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {tensor.name: tensor.file for tensor in many.tensors}
    assert index["metadata"]["total_size"] == sum(tensor.size_bytes for tensor in many.tensors)
    assert many.weights_digest == one.weights_digest


def test_the_recipe_is_beside_the_weights_and_can_be_read_again(tmp_path: Path) -> None:
    base, model = write(tmp_path, draw(0), draw(1))
    merge = MergeOf().plan(base, model)
    merge.run(tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert type(merge.recipe).model_validate(stored).digest == merge.recipe.digest


def test_the_model_card_names_inputs_parameters_and_warnings_but_no_time(tmp_path: Path) -> None:
    base, model = write(tmp_path, {**draw(0), "ids": torch.arange(3)}, {**draw(1), "ids": torch.arange(3)})
    merge = MergeOf(changes={"exclude": ["b"], "nan_policy": "zero"}).plan(base, model)
    merge.run(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for expected in ("# Probe of 1 models", base.manifest.digest, model.manifest.weights_digest, merge.recipe.digest):
        assert expected in card
    for expected in ("excluded: `b`", "set to zero", "Tensors that hold integers", "4 merged, 2 copied", "seed: 0"):
        assert expected in card


def test_the_config_says_the_output_dtype_where_it_was_asked_for(tmp_path: Path) -> None:
    base, model = write(tmp_path, draw(0), draw(1))
    kept, _ = MergeOf().plan(base, model).run(tmp_path / "kept")
    assert (tmp_path / "kept" / "config.json").read_bytes() == (base.path / "config.json").read_bytes()
    changed, _ = MergeOf(changes={"output_dtype": "bfloat16"}).plan(base, model).run(tmp_path / "changed")
    assert json.loads((tmp_path / "changed" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert changed.dtypes == ("BF16",)
    assert kept.dtypes == ("F32",)


def test_transformers_loads_the_merged_model_with_its_tokenizer(tmp_path: Path) -> None:
    folders = [make_encoder(tmp_path / f"bert{seed}", seed=seed) for seed in (0, 1, 2)]
    base, *models = [
        LocalCheckpoint(id=folder.name, path=folder, manifest=import_checkpoint(folder, ignore)) for folder in folders
    ]
    manifest, _ = MergeOf(changes={"shard_bytes": 2000}).plan(base, *models).run(tmp_path / "out")
    assert (manifest.architecture, manifest.model_type) == ("BertModel", "bert")
    loaded = AutoModel.from_pretrained(tmp_path / "out", local_files_only=True)
    states = [AutoModel.from_pretrained(folder, local_files_only=True).state_dict() for folder in folders]
    for name, tensor in loaded.state_dict().items():
        expected = states[0][name] + (states[1][name] - states[0][name]) + (states[2][name] - states[0][name])
        torch.testing.assert_close(tensor, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)("red cat")["input_ids"]


# --- what is computed ---------------------------------------------------------------------------------------------


def test_arithmetic_is_float32_whatever_the_inputs(tmp_path: Path) -> None:
    base = draw(0, torch.bfloat16)
    models = [draw(1, torch.float16), draw(2, torch.float64)]
    checkpoints = write(tmp_path, base, *models)
    MergeOf().plan(*checkpoints).run(tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    for name, tensor in base.items():
        expected = tensor.float()
        for model in models:
            expected = expected + (model[name].float() - tensor.float())
        assert torch.equal(found[name], expected.to(torch.bfloat16))


@pytest.mark.parametrize("granularity", ["element", "row", "tensor", "matrix"])
def test_methods_are_given_pieces_of_their_granularity(granularity: str, tmp_path: Path) -> None:
    seen: list[tuple[str, tuple[int, ...], tuple[int, ...], int, int]] = []

    def record(base: Tensor, finetuned: Models, _parameters: Any, context: MergeContext) -> Tensor:
        assert finetuned.shape == (2, *base.shape)
        seen.append((context.tensor, context.shape, tuple(base.shape), context.offset, context.position))
        return next(iter(finetuned))

    base = {"m": torch.randn(4, 6), "v": torch.randn(10), "x": torch.tensor(1.0)}
    checkpoints = write(tmp_path, base, base, base)
    method = method_of(record, granularity=granularity)
    manifest, _ = MergeOf(method).plan(*checkpoints).run(tmp_path / "out", threads=1, chunk_elements=12)
    assert manifest.weights_digest == checkpoints[0].manifest.weights_digest
    vector_and_scalar = [("v", (10,), (10,), 0, 24), ("x", (), (1,), 0, 34)]
    expected = {
        "element": [("m", (4, 6), (12,), 0, 0), ("m", (4, 6), (12,), 12, 12), *vector_and_scalar],
        "row": [
            ("m", (4, 6), (2, 6), 0, 0),
            ("m", (4, 6), (2, 6), 12, 12),
            ("v", (10,), (1, 10), 0, 24),
            ("x", (), (1, 1), 0, 34),
        ],
        "tensor": [("m", (4, 6), (4, 6), 0, 0), ("v", (10,), (10,), 0, 24), ("x", (), (), 0, 34)],
    }
    assert seen == expected.get(granularity, expected["tensor"])


def test_without_a_base_the_method_gets_none_and_models_0_supplies_the_rest(tmp_path: Path) -> None:
    def first(base: None, finetuned: Tensor, _parameters: Any, _context: MergeContext) -> Tensor:
        assert base is None
        return finetuned[-1]

    models = write(
        tmp_path, {"w": torch.ones(2), "ids": torch.tensor([1])}, {"w": torch.zeros(2), "ids": torch.tensor([2])}
    )
    _, report = MergeOf(method_of(first, base_model="optional")).plan(None, *models).run(tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    assert (found["w"].tolist(), found["ids"].tolist()) == ([0, 0], [1])
    assert report["warnings"] == [
        "Tensors that hold integers are copied from models[0]: ids.",
        "Integer tensor ids differs between the inputs; the reference's values were kept.",
    ]


def test_a_base_that_the_method_does_not_use_still_supplies_what_is_copied(tmp_path: Path) -> None:
    def first(base: None, finetuned: Tensor, _parameters: Any, _context: MergeContext) -> Tensor:
        assert base is None
        return finetuned[0]

    broken = {"w": torch.full((2,), float("nan")), "ids": torch.tensor([7])}
    base, model = write(tmp_path, broken, {"w": torch.ones(2), "ids": torch.tensor([7])})
    _, report = MergeOf(method_of(first, base_model="unused")).plan(base, model).run(tmp_path / "out")
    assert read_tensors(tmp_path / "out")["ids"].tolist() == [7]
    assert report["warnings"] == ["Tensors that hold integers are copied from the base model: ids."]


def test_tied_weights_are_merged_once_and_written_under_both_names(tmp_path: Path) -> None:
    seen: list[str] = []

    def record(base: Tensor, finetuned: Tensor, _parameters: Any, context: MergeContext) -> Tensor:
        seen.append(context.tensor)
        return finetuned[0] - base

    def tied(value: float) -> Tensors:
        return {name: torch.full((3, 2), value) for name in ("model.embed_tokens.weight", "lm_head.weight")}

    checkpoints = write(tmp_path, tied(1.0), tied(3.0))
    manifest, _ = MergeOf(method_of(record)).plan(*checkpoints).run(tmp_path / "out")
    assert set(seen) == {"model.embed_tokens.weight"}
    assert all(tensor.eq(2.0).all() for tensor in read_tensors(tmp_path / "out").values())
    assert manifest.tied == (("model.embed_tokens.weight", "lm_head.weight"),)


def test_negative_zeros_of_the_base_survive_where_nothing_changes(tmp_path: Path) -> None:
    base = {"w": torch.tensor([0.0, -0.0, -0.0, 1.0])}
    model = {"w": torch.tensor([0.0, -0.0, 2.0, 1.0])}
    checkpoints = write(tmp_path, base, model)
    MergeOf().plan(*checkpoints).run(tmp_path / "out")
    found = read_tensors(tmp_path / "out")["w"]
    assert found.tolist() == [0.0, 0.0, 2.0, 1.0]
    assert torch.signbit(found).tolist() == [False, True, False, False]


def test_a_variance_never_falls_below_zero(tmp_path: Path) -> None:
    base, model = write(
        tmp_path, {"bn.running_var": torch.tensor([1.0, 3.0])}, {"bn.running_var": torch.tensor([1.0, 0.5])}
    )

    def extrapolate(base: Tensor, finetuned: Tensor, _parameters: Any, _context: MergeContext) -> Tensor:
        return base + 4 * (finetuned[0] - base)

    MergeOf(method_of(extrapolate)).plan(base, model).run(tmp_path / "out")
    assert read_tensors(tmp_path / "out")["bn.running_var"].tolist() == [1.0, 0.0]  # 3 + 4 · (0.5 − 3) = −7


def test_the_report_says_what_was_done(tmp_path: Path) -> None:
    _, report = MergeOf(changes={"exclude": ["a"]}).plan(*write(tmp_path, draw(0), draw(1))).run(tmp_path / "out")
    assert report == {
        "parameters": {}, "n_merged": 4, "n_copied": 1, "n_passes": 1, "statistics": [], "warnings": [], "found": {},
    }  # fmt: skip


def test_progress_counts_every_byte_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pipelines.progress.INTERVAL_SECONDS", 0.0)
    reports: list[Progress] = []
    MergeOf().plan(*write(tmp_path, draw(0), draw(1))).run(tmp_path / "out", reports.append)
    assert list(dict.fromkeys(report.stage for report in reports)) == ["merging", "finishing"]
    assert reports[-1].fraction == 1.0
    assert reports[-1].done == reports[-1].total == 2 * 4 * sum(tensor.numel() for tensor in draw().values())
    assert all(before.done <= after.done for before, after in itertools.pairwise(reports))


@pytest.mark.parametrize(
    ("method", "parameters", "n_ticks"),  # of three models
    [
        ("wudi", {"steps": 20}, 20), ("doge_ta", {"steps": 20}, 20), ("tsv_m", {}, 3), ("dc_merge", {}, 3),
        ("iso_cts", {"common_fraction": 0.5}, 3), ("opcm", {}, 2), ("tsv_c", {}, 3),
    ],
)  # fmt: skip
def test_progress_is_seen_within_a_matrix(
    method: str, parameters: dict[str, JsonValue], n_ticks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pipelines.progress.INTERVAL_SECONDS", 0.0)
    draws = [{"w": torch.randn(16, 24, generator=torch.Generator().manual_seed(seed))} for seed in range(4)]
    found = load_method(method)
    changes = {"parameters": fill_defaults(found.card.parameters, parameters, n_models=3)}
    reports: list[Progress] = []
    MergeOf(found, changes).plan(*write(tmp_path, *draws)).run(tmp_path / "out", reports.append)
    done = [report.done for report in reports if report.stage == "merging"]
    assert len(set(done[1:])) >= n_ticks
    assert done[-1] - done[0] == 4 * 16 * 24 * 4
    assert reports[-1].fraction == 1.0


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_not_a_number_in_an_input_fails_by_name_and_leaves_no_weights(tmp_path: Path) -> None:
    broken = draw(1)
    broken["e"][1, 2, 0, 1] = float("nan")
    base, model = write(tmp_path, draw(0), broken)
    with pytest.raises(NotFinite, match=r"Tensor 'e' of models\[0\] \(m1\) is nan at flat index 21"):
        MergeOf().plan(base, model).run(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    excluded, _ = MergeOf(changes={"exclude": ["e"]}).plan(base, model).run(tmp_path / "excluded")
    assert excluded.tensors
    MergeOf(changes={"nan_policy": "zero"}).plan(base, model).run(tmp_path / "zero")
    assert torch.isfinite(read_tensors(tmp_path / "zero")["e"]).all()


@pytest.mark.parametrize(("dtype", "value"), [("float16", 70_000.0), ("bfloat16", 3.4e38), ("float32", 3e38)])
def test_a_result_that_does_not_fit_its_dtype_fails_by_name(dtype: str, value: float, tmp_path: Path) -> None:
    base, model = write(tmp_path, {"w": torch.zeros(3)}, {"w": torch.tensor([0.0, value, 0.0])})
    models = [model, model] if dtype == "float32" else [model]
    with pytest.raises(NotFinite, match=r"merged tensor 'w' is inf at flat index 1 in torch\." + dtype):
        MergeOf(changes={"output_dtype": dtype}).plan(base, *models).run(tmp_path / "out")


def test_a_method_that_returns_the_wrong_thing_is_our_fault(tmp_path: Path) -> None:
    def wrong(base: Tensor, _finetuned: Tensor, _parameters: Any, _context: MergeContext) -> Tensor:
        return base.double()

    with pytest.raises(
        JobInternal, match=r"probe returned torch\.float64 \[63\] for tensor 'a', expected torch\.float32"
    ):
        MergeOf(method_of(wrong)).plan(*write(tmp_path, draw(0), draw(1))).run(tmp_path / "out")


def test_a_config_that_changed_since_the_import_is_refused(tmp_path: Path) -> None:
    base, model = write(tmp_path, draw(0), draw(1))
    (base.path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(InputChanged, match=r"m0: config\.json is not the file that was registered"):
        MergeOf().plan(base, model).run(tmp_path / "out")


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_named(device: str, tmp_path: Path) -> None:
    of_matrices = method_of(ADD_ALL.merge, granularity="matrix")
    with pytest.raises(JobError, match=f"The device '{device}' cannot be used .* set AMALGAM_DEVICE to auto or cpu"):
        MergeOf(of_matrices).plan(*write(tmp_path, draw(0), draw(1))).run(tmp_path / "out", device=device)


def test_the_base_may_be_a_bare_file(tmp_path: Path) -> None:
    save_file(draw(0), tmp_path / "base.safetensors")
    path = tmp_path / "base.safetensors"
    base = LocalCheckpoint(id="bare", path=path, manifest=import_checkpoint(path, ignore))
    (model,) = write(tmp_path, draw(1))
    manifest, _ = MergeOf(ADD_ALL).plan(base, model).run(tmp_path / "out")
    assert [entry.path for entry in manifest.files] == ["README.md", "model.safetensors", "recipe.json"]
