"""mergekit documents as requests: its own defaults and conditions, and what it would pass over is refused."""

import pytest

from app.domain.catalog import load_catalog
from app.domain.errors import FieldProblem, UnknownMethod
from app.domain.mergekit.methods import KNOWN_METHODS, KnownMethod
from app.domain.mergekit.reading import read_merge
from app.domain.requests import MergeRequest
from tests.app.domain.mergekit.documents import faults_of, read

TIES = """
    merge_method: ties
    base_model: base
    models:
      - model: a
        parameters: {weight: 0.5}
      - model: b@2
        parameters: {weight: 0.3}
"""


# --- defaults -----------------------------------------------------------------------------------------------------


def test_ties_has_mergekits_defaults_and_ways() -> None:
    assert read(TIES) == {
        "method": "ties",
        "base_model": "base",
        "models": [{"checkpoint": "a", "weight": 0.5}, {"checkpoint": "b@2", "weight": 0.3}],
        "parameters": {
            "density": 1.0, "scaling_coefficient": 1.0, "reduce": "mean",
            "trim_scope": "tensor", "vote": "weighted", "zero_vote": "positive",
        },
    }  # fmt: skip


def test_ties_without_normalize_sums() -> None:
    parameters = read(TIES + "    parameters: {normalize: no, int8_mask: true, density: 0.5, lambda: 0.7}\n")[
        "parameters"
    ]
    assert (parameters["reduce"], parameters["density"], parameters["scaling_coefficient"]) == ("sum", 0.5, 0.7)


def test_linear_takes_the_base_model_for_one_of_the_inputs() -> None:
    text = "{merge_method: linear, base_model: c, models: [{model: a}, {model: b}], parameters: {weight: 2}}"
    request = read(text)
    assert [model["checkpoint"] for model in request["models"]] == ["a", "b", "c"]
    assert request["parameters"] == {"normalize": True}
    assert "base_model" not in request


def test_task_arithmetic_divides_lambda_where_mergekit_divides_the_sum() -> None:
    text = """
        merge_method: task_arithmetic
        base_model: c
        models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
        parameters: {LINE}
    """
    assert read(text.replace("LINE", "normalize: true, lambda: 2"))["parameters"] == {"scaling_coefficient": 0.5}
    assert read(text.replace("{LINE}", "{lambda: 2}"))["parameters"] == {"scaling_coefficient": 2.0}
    balanced = text.replace("weight: 3", "weight: -1").replace("LINE", "normalize: true, lambda: 2")
    assert read(balanced)["parameters"] == {"scaling_coefficient": 2.0}


def test_breadcrumbs_drops_no_outliers_at_density_one() -> None:
    text = """
        merge_method: breadcrumbs
        base_model: base
        models: [{model: a}]
        parameters: {weight: 1, gamma: 0.2, density: [{filter: mlp, value: 0.5}]}
    """
    request = read(text)
    assert (request["parameters"]["density"], request["parameters"]["outlier_fraction"]) == (1.0, 0.0)
    assert request["overrides"] == [{"match": "*mlp*", "parameters": {"density": 0.5, "outlier_fraction": 0.2}}]


def test_slerp_walks_from_the_base_model() -> None:
    request = read("{merge_method: slerp, base_model: b, models: [{model: a}, {model: b}], parameters: {t: 0.2}}")
    assert [model["checkpoint"] for model in request["models"]] == ["b", "a"]
    assert "base_model" not in request
    assert request["parameters"] == {"t": 0.2}


def test_the_base_model_is_no_model_of_a_method_of_task_vectors() -> None:
    request = read("{merge_method: ties, base_model: b, models: [{model: a}, {model: b}], parameters: {weight: 1}}")
    assert [model["checkpoint"] for model in request["models"]] == ["a"]


@pytest.mark.parametrize(
    ("lines", "dtype"),
    [
        ("dtype: bfloat16", "bfloat16"),
        ("{dtype: float32, out_dtype: torch.float16}", "float16"),
        ("out_dtype: float32", "float32"),
    ],
)
def test_what_is_written_is_out_dtype_else_dtype(lines: str, dtype: str) -> None:
    more = "\n".join(f"    {line}" for line in lines.strip("{}").split(", "))
    assert read(TIES + more)["output"] == {"dtype": dtype}


def test_what_mergekit_has_no_word_for_stands_under_our_name() -> None:
    more = "    dtype: float16\n    amalgam: {output: {name: x, tags: {a: b}}, evaluate: [tickets], seed: 3}\n"
    request = read(TIES + more)
    assert request["output"] == {"dtype": "float16", "name": "x", "tags": {"a": "b"}}
    assert (request["evaluate"], request["seed"]) == (["tickets"], 3)


# --- conditions and lists -----------------------------------------------------------------------------------------


def test_the_first_condition_wins_so_the_overrides_come_in_the_opposite_order() -> None:
    text = """
        merge_method: slerp
        base_model: a
        models: [{model: a}, {model: b}]
        parameters:
          t:
            - {filter: self_attn, value: 0.1}
            - {filter: "a*b", value: 0.2}
            - value: 0.5
            - {filter: never, value: 0.9}
    """
    request = read(text)
    assert request["parameters"] == {"t": 0.5}
    assert request["overrides"] == [
        {"match": "*a[*]b*", "parameters": {"t": 0.2}},
        {"match": "*self_attn*", "parameters": {"t": 0.1}},
    ]


def test_a_list_holds_in_the_layers_and_its_first_number_elsewhere() -> None:
    text = "{merge_method: slerp, base_model: a, models: [{model: a}, {model: b}], parameters: {t: [0, 0.5, 1]}}"
    request = read(text)
    assert request["parameters"] == {"t": 0.0}
    assert request["overrides"] == [{"match": "*.[0-9]*.*", "parameters": {"t": [0.0, 0.5, 1.0]}}]


def test_weights_of_one_model_leave_the_others_alone() -> None:
    text = TIES.replace("{weight: 0.3}", "{weight: [{filter: mlp, value: [0, 1]}, {value: 1e-5}]}")
    request = read(text)
    assert request["models"][1]["weight"] == 1e-5
    assert request["overrides"] == [
        {"match": "*mlp*", "weights": [None, 0.0]},
        {"match": "*.[0-9]*.*mlp*", "weights": [None, [0.0, 1.0]]},
    ]


def test_weights_of_all_models_make_one_override() -> None:
    weight = "[{filter: x, value: 2}, {value: 1}]"
    text = f"{{merge_method: linear, models: [{{model: a}}, {{model: b}}], parameters: {{weight: {weight}}}}}"
    assert read(text)["overrides"] == [{"match": "*x*", "weights": [2.0, 2.0]}]


def test_a_models_own_setting_goes_before_that_of_all() -> None:
    text = """
        merge_method: linear
        models: [{model: a, parameters: {weight: [{filter: x, value: 3}]}}, {model: b}]
        parameters: {weight: 1}
    """
    request = read(text)
    assert [model["weight"] for model in request["models"]] == [1.0, 1.0]
    assert request["overrides"] == [{"match": "*x*", "weights": [3.0, None]}]


def test_equal_densities_of_the_models_are_one_parameter() -> None:
    text = TIES.replace("weight: 0.5", "weight: 0.5, density: 0.4").replace("weight: 0.3", "weight: 0.3, density: 0.4")
    assert read(text)["parameters"]["density"] == 0.4


def test_a_density_of_one_model_is_its_own() -> None:
    text = TIES.replace("weight: 0.3", "weight: 0.3, density: 0.2") + "    parameters: {density: 0.4}\n"
    request = read(text)
    assert request["parameters"]["density"] == 0.4
    assert request["models"] == [
        {"checkpoint": "a", "weight": 0.5},
        {"checkpoint": "b@2", "weight": 0.3, "parameters": {"density": 0.2}},
    ]


def test_lists_and_conditions_of_one_model_are_overrides_of_its_own() -> None:
    """The example of mergekit's own README."""
    text = """
        merge_method: ties
        base_model: llama
        models:
          - {model: orca, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
          - {model: platypus, parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}}
          - model: wizard
            parameters:
              density: 0.33
              weight: [{filter: mlp, value: 0.5}, {value: 0}]
        parameters: {normalize: true, int8_mask: true}
        dtype: float16
    """
    request = read(text)
    assert [model["parameters"] for model in request["models"]] == [
        {"density": 1.0}, {"density": 0.5}, {"density": 0.33},
    ]  # fmt: skip
    assert request["overrides"] == [
        {
            "match": "*.[0-9]*.*",
            "weights": [None, [0.0, 0.3, 0.7, 1.0], None],
            "models": [{"density": [1.0, 0.7, 0.1]}, None, None],
        },
        {"match": "*mlp*", "weights": [None, None, 0.5]},
    ]
    MergeRequest.model_validate(request)


def test_what_goes_with_a_models_own_density_is_its_own_where_it_differs() -> None:
    text = TIES.replace("ties", "breadcrumbs").replace("weight: 0.3", "weight: 0.3, density: 0.2")
    request = read(text + "    parameters: {density: 1.0, gamma: 0.05}\n")
    assert (request["parameters"]["density"], request["parameters"]["outlier_fraction"]) == (1.0, 0.0)
    assert request["models"][1]["parameters"] == {"density": 0.2, "outlier_fraction": 0.05}
    request = read(text + "    parameters: {density: 0.5, gamma: 0.05}\n")
    assert request["models"][1]["parameters"] == {"density": 0.2}


# --- modules and tokenizers ---------------------------------------------------------------------------------------


def test_one_module_is_the_document() -> None:
    plain = "{merge_method: linear, models: [{model: a}, {model: b}], parameters: {weight: 1, normalize: false}}"
    module = "{models: [{model: a}, {model: b}], parameters: {weight: 1}}"
    text = f"{{merge_method: linear, modules: {{default: {module}}}, parameters: {{weight: 2, normalize: false}}}}"
    assert read(text) == read(plain)


def test_one_module_of_slices_is_the_document() -> None:
    named = "slices: [{sources: [{model: x, layer_range: [0, 2]}]}]"
    assert read(f"{{merge_method: passthrough, modules: {{text: {{{named}}}}}}}") == read(
        f"{{merge_method: passthrough, {named}}}"
    )


@pytest.mark.parametrize(
    "line", ["tokenizer_source: base", "tokenizer_source: base\n    tokenizer: {}", "tokenizer: {source: base}"]
)
def test_the_tokenizer_of_the_base_model_is_what_travels(line: str) -> None:
    assert read(TIES + f"    {line}") == read(TIES)


def test_without_a_base_model_the_tokenizer_is_the_first_models() -> None:
    text = "{merge_method: linear, models: [{model: a}, {model: b}], parameters: {weight: 1}, tokenizer_source: %s}"
    assert read(text % "base") == read(text % "a")
    assert "the tokenizer of 'a' travels along" in faults_of(text % "b")["/tokenizer_source"][0]


def test_a_base_model_that_is_one_of_the_inputs_must_come_first_for_its_tokenizer() -> None:
    text = "{merge_method: linear, base_model: b, models: [{model: a}, {model: b}], parameters: {weight: 1}, %s}"
    assert "the tokenizer of 'a' travels along" in faults_of(text % "tokenizer_source: base")["/tokenizer_source"][0]


# --- slices -------------------------------------------------------------------------------------------------------


def test_one_slice_over_all_layers_is_a_merge_of_whole_models() -> None:
    text = """
        slices:
          - sources:
              - {model: a, layer_range: [0, 40]}
              - {model: b, layer_range: [0, 40]}
        merge_method: slerp
        base_model: a
        parameters: {t: 0.5}
    """
    request = read(text)
    assert request["n_blocks"] == 40
    assert [model["checkpoint"] for model in request["models"]] == ["a", "b"]


def test_passthrough_takes_slices_and_scales() -> None:
    text = """
        merge_method: passthrough
        slices:
          - sources: [{model: x, layer_range: [0, 16]}]
          - sources:
              - model: y
                layer_range: [12, 16]
                parameters:
                  scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0}, {value: 1.0}]
          - sources: [{model: x, layer_range: [16, 20]}]
        parameters: {scale: 2}
    """
    request = read(text)
    assert [model["checkpoint"] for model in request["models"]] == ["x", "y"]
    first, second, third = (one["sources"][0] for one in request["parameters"]["slices"])
    assert (first["model"], second["model"], third["model"]) == (0, 1, 0)
    assert (first["layer_range"], third["layer_range"]) == ([0, 16], [16, 20])
    assert second["scaling"] == [
        {"match": "*", "factor": 1.0}, {"match": "*down_proj*", "factor": 0.0}, {"match": "*o_proj*", "factor": 0.0},
    ]  # fmt: skip
    assert request["parameters"]["scaling"] == [{"match": "*", "factor": 2.0}]


def test_passthrough_of_one_model_copies_it() -> None:
    request = read("{merge_method: passthrough, models: [{model: a, parameters: {scale: 0.5}}]}")
    assert request["parameters"] == {"scaling": [{"match": "*", "factor": 0.5}]}


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pointer", "message", "near"),
    [
        (TIES + "    merge_metod: ties", "/merge_metod", "line 9: unknown key 'merge_metod'", "merge_method"),
        (TIES + "    parameters: {densty: 0.3}", "/parameters/densty", "mergekit would pass over 'densty'", "density"),
        (TIES.replace("weight: 0.5", "wieght: 1"), "/models/0/parameters/wieght", "would pass over", "weight"),
        (TIES.replace("weight: 0.5", "normalize: true"), "/models/0/parameters/normalize", "of one model", None),
        (TIES + "    tokenizer_source: union", "/tokenizer_source", "give all models one vocabulary first", None),
        (TIES + "    tokenizer_source: a", "/tokenizer_source", "the tokenizer of 'base' travels along", None),
        (TIES + "    tokenizer: {source: b@2}", "/tokenizer/source", "the tokenizer of 'base' travels along", None),
        (TIES + "    tokenizer: {tokens: {x: y}}", "/tokenizer/tokens", "tokens cannot be honored", None),
        (TIES + "    tokenizer: {pad_to_multiple_of: 8}", "/tokenizer/pad_to_multiple_of", "pad the embeddings", None),
        (TIES + "    tokenizer: {sorce: base}", "/tokenizer/sorce", "mergekit would pass over it", None),
        (TIES + "    chat_template: auto", "/chat_template", "keeps the chat template", None),
        (TIES + "    modules: {}", "/models", "one of models, slices and modules", None),
        ("{merge_method: linear, modules: {}}", "/modules", "expected one module, found 0", None),
        ("{merge_method: linear, modules: {a: {models: [{model: x}]}, b: {models: [{model: x}]}}}", "/modules",
         "merge whole models, with overrides", None),
        ("{merge_method: linear, modules: {a: {models: [{model: x}]}}}", "/modules/a/models/0/model",
         "the weight of 'x' is missing", None),
        ("{merge_method: linear, modules: {a: {model: x}}}", "/modules/a/model", "unknown key 'model'", "models"),
        (TIES + "    dtype: float64", "/dtype", "line 9: expected one of float32, float16, bfloat16", None),
        (TIES + "    parameters: {rescale: true}", "/parameters/rescale", "does not rescale", None),
        (TIES + "    parameters: {density: x}", "/parameters/density", "expected a finite number, found 'x'", None),
        (TIES + "    parameters: {normalize: 1}", "/parameters/normalize", "expected true or false", None),
        (TIES + "    parameters: {normalize: [true, false]}", "/parameters/normalize", "found a list of 2", None),
        (TIES + "    parameters: {lambda: []}", "/parameters/lambda", "found a list of 0", None),
        (TIES + "    parameters: {lambda: {filter: a}}", "/parameters/lambda", "the condition has no value", None),
        (TIES + "    parameters: {lambda: [{value: 1, filtr: a}]}", "/parameters/lambda/0/filtr", "unknown", "filter"),
        (TIES + "    parameters: {lambda: [{value: 1, filter: 3}]}", "/parameters/lambda/0/filter", "quotes", None),
        (TIES + "    slices: []", "/models", "one of models, slices and modules", None),
        (TIES + "    amalgam: {sed: 1}", "/amalgam/sed", "unknown key 'sed'", "seed"),
        (TIES + "    amalgam: {method: ties}", "/amalgam/method", "unknown key 'method'", "method_version"),
        (TIES.replace("model: b@2", "model: a"), "/models/1/model", "named twice", None),
        (TIES.replace("model: b@2", "model: a+lora"), "/models/1/model", "adds an adapter", None),
        (TIES.replace("model: b@2", "model: 7"), "/models/1/model", "as text", None),
        (TIES.replace("base_model: base", ""), "/base_model", "ties needs base_model", None),
        (TIES.replace("{weight: 0.3}", "{}"), "/models/1/model", "the weight of 'b@2' is missing", None),
        (TIES.replace("0.3", "[{filter: a, value: 1}]"), "/models/1/parameters/weight/0", "no value for", None),
        (TIES.replace("model: b@2", "model: base"), "/models/1/parameters/weight", "none for the base model", None),
        ("{merge_method: slerp, base_model: a, models: [{model: b}]}", "/parameters/t", "the t is missing", None),
        ("{models: []}", "/merge_method", "merge_method is missing", None),
        ("{merge_method: [], models: []}", "/merge_method", "the name of a method", None),
        ("[]", "/", "expected a mapping", None),
    ],
)  # fmt: skip
def test_what_mergekit_would_pass_over_or_we_cannot_do_is_refused_by_its_line(
    text: str, pointer: str, message: str, near: str | None
) -> None:
    found = faults_of(text)
    assert pointer in found, found
    assert message in found[pointer][0]
    assert found[pointer][0].startswith("line ")
    assert found[pointer][1] == near


def test_task_arithmetic_has_no_density_which_mergekit_would_pass_over() -> None:
    found = faults_of(TIES.replace("ties", "task_arithmetic") + "    parameters: {density: 0.3}")
    assert "task_arithmetic has no such parameter" in found["/parameters/density"][0]


def test_density_and_gamma_must_leave_room_for_both() -> None:
    text = TIES.replace("ties", "breadcrumbs") + "    parameters: {density: 0.9, gamma: 0.2}"
    assert "leaves no room for gamma 0.2" in faults_of(text)["/parameters/density"][0]
    text = TIES.replace("ties", "della") + "    parameters: {density: 0.1}"
    assert "leaves no room for epsilon 0.15" in faults_of(text)["/parameters/density"][0]


def test_della_keeps_all_at_density_one() -> None:
    parameters = read(TIES.replace("ties", "della"))["parameters"]
    assert (parameters["density"], parameters["density_spread"]) == (1.0, 0.0)
    parameters = read(TIES.replace("ties", "della") + "    parameters: {density: 0.5}")["parameters"]
    assert (parameters["density_spread"], parameters["rescale"], parameters["reduce"]) == (0.15, "l1", "mean")


@pytest.mark.parametrize(
    ("flags", "scope"),
    [
        ("", "tensor"),
        ("nuslerp_flatten: false", "row"),
        ("nuslerp_flatten: false, nuslerp_row_wise: true", "column"),
        ("nuslerp_row_wise: true", "tensor"),
    ],
)
def test_nuslerp_takes_two_flags_for_a_scope(flags: str, scope: str) -> None:
    text = f"{{merge_method: nuslerp, models: [{{model: a}}, {{model: b}}], parameters: {{weight: 1, {flags}}}}}"
    assert read(text)["parameters"] == {"scope": scope}


def test_ram_and_its_plus_are_one_method() -> None:
    text = "{merge_method: ramplus_tl, base_model: c, models: [{model: a}], parameters: {r: 0.3}}"
    plain = read(text.replace("ramplus_tl", "ram").replace("r: 0.3", "epsilon: 0.001"))["parameters"]
    assert plain == {"change_threshold": 0.001, "unique_boost": 0.0, "max_overlap_ratio": 0.2}
    assert read(text)["parameters"] == {"change_threshold": 1e-5, "unique_boost": 0.3, "max_overlap_ratio": 0.2}


def test_an_unknown_method_has_its_near_match() -> None:
    with pytest.raises(UnknownMethod) as found:
        read("{merge_method: tiess, models: [{model: a}]}")
    assert found.value.errors[0].did_you_mean == "ties"


def test_every_fault_is_named_at_once() -> None:
    found = faults_of(TIES.replace("0.5", "x").replace("0.3", "y") + "    dtype: int\n    tokenizer: 3")
    assert sorted(found) == ["/dtype", "/models/0/parameters/weight", "/models/1/parameters/weight", "/tokenizer"]


@pytest.mark.parametrize(
    ("slices", "pointer", "message"),
    [
        ("[{sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [1, 5]}]}]",
         "/slices/0/sources/1/layer_range", "the same layers of every model"),
        ("[{sources: [{model: a, layer_range: [0, 4]}]}, {sources: [{model: a, layer_range: [4, 8]}]}]",
         "/slices/1", "several slices are read for passthrough only"),
        ("[{sources: [{model: a, layer_range: [4, 0]}]}]", "/slices/0/sources/0/layer_range", "expected layer_range"),
        ("[{sources: [{model: a}]}]", "/slices/0/sources/0/layer_range", "expected layer_range"),
        ("[{source: []}]", "/slices/0/source", "unknown key 'source'"),
        ("[{sources: [], residual_weight: 1}]", "/slices/0/residual_weight", "mergekit does nothing with it"),
    ],
)  # fmt: skip
def test_slices_of_a_merge_are_whole_models(slices: str, pointer: str, message: str) -> None:
    found = faults_of(f"{{merge_method: slerp, base_model: a, slices: {slices}, parameters: {{t: 0}}}}")
    assert pointer in found, found
    assert message in found[pointer][0]


def test_faults_of_the_request_are_placed_in_the_document() -> None:
    reading = read_merge(TIES.replace("weight: 0.3", "weight: [{filter: q, value: 1}, {value: 2}]").encode())
    assert reading.place(_fault("/models/1/checkpoint")) == FieldProblem("/models/1/model", "line 7: is wrong")
    assert reading.place(_fault("/models/1/weight")).pointer == "/models/1/parameters/weight/1"
    assert reading.place(_fault("/overrides/0/match")).pointer == "/models/1/parameters/weight/0"
    assert reading.place(_fault("/base_model")).pointer == "/base_model"
    assert reading.place(_fault("/nowhere")) == _fault("/nowhere")


def _fault(pointer: str) -> FieldProblem:
    return FieldProblem(pointer, "is wrong")


# --- the table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", KNOWN_METHODS, ids=lambda known: known.theirs)
def test_every_method_of_the_table_makes_a_request_that_the_catalog_takes(known: KnownMethod) -> None:
    has = ["t: 0.5"] if known.theirs in ("slerp", "nearswap") else []
    has += ["weight: 0.5"] if known.has_weights else []
    names = ["a"] if known.theirs in ("passthrough", "nearswap", "arcee_fusion") else ["a", "b"]
    base = "base_model: c," if known.base == "required" else "base_model: a," if known.base == "start" else ""
    models = ", ".join(f"{{model: {name}}}" for name in names)
    request = read(f"{{merge_method: {known.theirs}, {base} models: [{models}], parameters: {{{', '.join(has)}}}}}")
    asked = MergeRequest.model_validate(request)
    if known.ours not in {card.name for card in load_catalog().methods}:
        pytest.skip("not in the catalog")
    card, effective = load_catalog().check(
        asked.method,
        asked.parameters,
        has_base_model=asked.base_model is not None,
        weights=[model.weight for model in asked.models],
    )
    assert card.name == known.ours
    assert known.fixed.items() <= effective.items()
