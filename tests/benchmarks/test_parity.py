"""The comparisons with other tools: what both sides are given, what the page says. The tools run in `make parity`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app.domain.adapters import parts_of
from app.domain.catalog import load_catalog
from benchmarks.parity import __main__ as parity
from benchmarks.parity import adapters, ours
from benchmarks.parity.case import LOADED, SCALAR, Case, find_cases
from benchmarks.parity.inputs import LINEAR, write_given_statistics, write_inputs
from benchmarks.parity.uncompared import REASONS, STEPS

CASES = [case for tool in ("mergekit", "fusion-bench", "peft") for case in find_cases(tool)]


def test_every_case_is_a_merge_that_the_catalog_takes() -> None:
    for case in CASES:
        parameters = {name: value for name, value in ours.fill_in(case.parameters).items() if name != "adapter_space"}
        load_catalog().check(case.method, parameters, has_base_model=True, weights=case.weights)
        for name, own in case.post_steps:
            load_catalog().check_step("post_steps", name, own, pointer="")


def test_no_two_rows_are_called_alike() -> None:
    rows = [(case.method, case.variant, case.oracle, case.call) for case in CASES]
    assert len(set(rows)) == len(rows)


def test_every_method_is_compared_or_it_is_said_why_not() -> None:
    assert {card.name for card in load_catalog().methods} - {case.method for case in CASES} == set(REASONS)


def test_every_transform_and_post_step_is_compared_or_it_is_said_why_not() -> None:
    catalog = load_catalog()
    compared = {f"post-step `{name}`" for case in CASES for name, _ in case.post_steps}
    known = {f"transform `{step.name}`" for step in catalog.transforms}
    known |= {f"post-step `{step.name}`" for step in catalog.post_steps}
    assert known - compared == set(STEPS)


def test_the_page_says_why_others_are_not_compared() -> None:
    page = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    assert page.endswith(parity._render_rest({case.method for case in CASES}))


def test_adapters_of_one_start_average_to_the_average_of_what_they_stand_for(tmp_path: Path) -> None:
    inputs = adapters.write_inputs(tmp_path / "inputs")
    (case,) = (one for one in find_cases("peft") if (one.method, one.variant) == ("linearized_lora", "average, folded"))
    dense, made = adapters.merge(case, inputs, tmp_path / "made")
    assert all(parts_of(model.manifest).is_linearized for model in inputs.linearized)
    assert (made / "adapter_config.json").exists()
    base = load_file(inputs.base.path / "model.safetensors")
    own = [load_file(next(model.path.glob("*.safetensors"))) for model in inputs.linearized]
    for module, is_turned in (("dense", False), ("c_fc", True), ("head", False)):
        at = f"base_model.model.{module}"
        expansions = []
        for tensors in own:
            a, b = (tensors[f"{at}.model.lora_{factor}.default.weight"].double() for factor in "AB")
            a0, b0 = (tensors[f"{at}.params0_values.{place}"].double() for place in (2, 3))
            expansions.append(1.5 * (b @ a0 + b0 @ (a - a0)))  # alpha 6, rank 4
        expected = base[f"{module}.weight"].double()
        mean = torch.stack(expansions).mean(dim=0)
        torch.testing.assert_close(
            dense[f"{module}.weight"].double(), expected + (mean.T if is_turned else mean), rtol=0, atol=1e-7
        )


def test_the_other_tool_is_handed_what_we_merge(tmp_path: Path) -> None:
    inputs = adapters.write_inputs(tmp_path / "inputs")
    cases = find_cases("fusion-bench", "adapters")
    for index, case in enumerate((cases[0], cases[-1])):
        _, made = adapters.merge(case, inputs, tmp_path / f"made-{index}")
        order = adapters.order(case, inputs, made, tmp_path / "theirs.safetensors")
        if case.method == "knots":
            base, *models = (load_file(path) for path in order["inputs"])
            assert len(models) == len(case.weights)
            # what an adapter makes of the base: s·B·A on top of it, alpha 6 and rank 4
            factors = load_file(inputs.adapters[0].path / "adapter_model.safetensors")
            at = "base_model.model.dense"
            update = 1.5 * factors[f"{at}.lora_B.weight"] @ factors[f"{at}.lora_A.weight"]
            torch.testing.assert_close(models[0]["dense.weight"], base["dense.weight"] + update)
        else:
            assert order["adapters"] == [str(model.path) for model in inputs.linearized]
            assert Path(order["ours"]).exists()


def test_what_would_be_measured_is_given_to_the_merge(tmp_path: Path) -> None:
    base, paths = write_inputs(tmp_path / "inputs")
    given = write_given_statistics(tmp_path / "inputs")
    opened = ours.open_checkpoint(base), [ours.open_checkpoint(path) for path in paths]
    models = [load_file(path / "model.safetensors") for path in paths]

    fisher = Case("fisher", "", "fusion-bench", "", {"floor": 0.0, "normalize": False})
    found = ours.merge(fisher, *opened, tmp_path / "fisher", given["fisher"])
    information = [load_file(path) for path in given["fisher"]]
    for name in information[0]:
        counts = [one[name].double() for one in information]
        total = sum(count * model[name].double() for count, model in zip(counts, models, strict=True))
        torch.testing.assert_close(found[name].double(), total / sum(counts), rtol=0, atol=1e-7)

    regmean = Case("regmean", "", "fusion-bench", "", {"non_diagonal_scale": 1.0})
    found = ours.merge(regmean, *opened, tmp_path / "regmean", given["gram"])
    grams = [load_file(path)[LINEAR].double().numpy() for path in given["gram"]]
    moved = sum(model[LINEAR].double().numpy() @ gram for model, gram in zip(models, grams, strict=True))
    expected = np.linalg.solve(sum(grams), moved.T).T
    np.testing.assert_allclose(found[LINEAR].numpy(), expected, atol=1e-6)


def test_post_steps_of_a_case_are_taken(tmp_path: Path) -> None:
    base, paths = write_inputs(tmp_path / "inputs")
    opened = ours.open_checkpoint(base), [ours.open_checkpoint(paths[0])]
    plain = Case("task_arithmetic", "", "fusion-bench", "", {"scaling_coefficient": 3.0}, weights=(1.0,))
    calibrated = Case(
        "task_arithmetic", "", "fusion-bench", "", {"scaling_coefficient": 3.0}, weights=(1.0,),
        post_steps=(("svc", {"dense_patterns": []}),),
    )  # fmt: skip
    tripled = ours.merge(plain, *opened, tmp_path / "plain")
    found = ours.merge(calibrated, *opened, tmp_path / "calibrated")
    own = load_file(paths[0] / "model.safetensors")
    # three times one task is counted three times in each direction: calibrated it is that task
    torch.testing.assert_close(found[LINEAR], own[LINEAR], rtol=0, atol=1e-6)
    assert torch.equal(found[SCALAR], tripled[SCALAR])


@pytest.mark.parametrize(
    ("differs", "apart", "verdict"),
    [
        ("", 0.0, "equal"),
        ("", 1.0, "**not as expected**"),
        ("it is right", 1.0, "differs: it is right"),
        ("it is right", 0.0, "**not as expected**"),  # a reason that no longer holds
    ],
)
def test_a_row_says_whether_it_is_as_expected(differs: str, apart: float, verdict: str) -> None:
    case = Case("average", "equal weights", "mergekit", "linear", differs=differs, left_out=("b",))
    row = parity.compare(case, {"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.full((2,), apart)})
    page = parity.render([row])
    assert f"| `average` | equal weights | mergekit `linear` | 1 | {2 * int(apart)} |" in page
    assert f"| {verdict} |" in page
    assert row.is_as_expected == (verdict != "**not as expected**")


def test_a_loaded_result_is_compared_by_what_it_does() -> None:
    mine, theirs = parity.pair_outputs(
        {"w": torch.zeros(1)}, {"w": torch.zeros(1), "outputs": torch.ones(1), "ours.outputs": torch.zeros(1)}
    )
    row = parity.compare(Case("knots", "loaded", "peft", LOADED), mine, theirs)
    assert (row.n_tensors, row.n_different) == (2, 1)
