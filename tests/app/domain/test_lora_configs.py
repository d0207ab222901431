"""An adapter's config: what is understood, and what is refused with its reason."""

from math import sqrt
from typing import Any

import pytest

from app.domain.errors import AdapterUnsupported, CheckpointInvalid
from app.domain.lora_configs import parse_lora_config, rank_of, scaling_of


def parse(**fields: Any) -> Any:
    return parse_lora_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **fields})


def test_scaling_is_alpha_over_rank_and_with_rslora_over_its_root() -> None:
    assert scaling_of(parse(), "encoder.query") == 2.0
    assert scaling_of(parse(use_rslora=True), "encoder.query") == pytest.approx(16 / sqrt(8))


def test_patterns_give_modules_their_own_rank_and_alpha_by_the_end_of_their_path() -> None:
    config = parse(rank_pattern={"query": 4, "layer.1.value": 2}, alpha_pattern={"^encoder.*key": 32})
    assert [rank_of(config, name) for name in ("layer.0.query", "layer.1.value", "layer.11.value")] == [4, 2, 8]
    assert scaling_of(config, "layer.0.query") == 4.0  # 16 / 4
    assert scaling_of(config, "encoder.0.key") == 4.0  # 32 / 8
    assert rank_of(config, "layer.0.myquery") == 8  # a whole part of the path, not its end


def test_peft_defaults_are_filled_in() -> None:
    config = parse_lora_config({"peft_type": "LORA"})
    assert (config.rank, config.alpha, config.use_rslora, config.modules_to_save) == (8, 8.0, False, ())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora: DoRA rescales.*merge_and_unload"),
        ({"peft_type": "IA3"}, "peft_type 'IA3', expected 'LORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*path_initial_model_for_weight_conversion"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.w1"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "no weight can express"),
        ({"kasa_config": {"beta": 1}}, "'kasa_config', which this release does not know"),
    ],
)
def test_what_is_no_low_rank_sum_is_refused_with_the_reason(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterUnsupported, match=words):
        parse(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 0}, "found 0 as r, expected a whole number from 1"),
        ({"r": True}, "found True as r"),
        ({"lora_alpha": "16"}, "found '16' as lora_alpha, expected a finite number"),
        ({"use_rslora": "yes"}, "as use_rslora, expected true or false"),
        ({"modules_to_save": "head"}, "expected a list of module names"),
        ({"rank_pattern": {"(a+)+$": 4}}, "without repeated groups"),
        ({"rank_pattern": {"[": 4}}, "expected a regular expression"),
        ({"rank_pattern": {"query": 0}}, "found 0 as query"),
    ],
)
def test_malformed_fields_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointInvalid, match=words):
        parse(**fields)


def test_fields_of_newer_releases_that_are_off_are_no_trouble() -> None:
    parse(kasa_config=None, use_qalora=False, loftq_config={}, eva_config=None, peft_version="0.21.2")
