"""The code on docs/patches.md, which needs numpy alone, gives what Amalgam itself gives."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.domain.checkpoints import LocalCheckpoint
from tests.workers.files import FileMerge, ignore, write_checkpoint
from tests.workers.models import draw_normal
from workers.catalog import find_methods
from workers.pipelines.materialize import materialize

PAGE = Path(__file__).parents[2] / "docs" / "patches.md"
METHODS = [method.card.name for method in find_methods() if method.patch is not None]


def _code() -> dict[str, Any]:  # of the page: functions by name
    block = re.findall(r"```python\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_code_on_the_page_gives_the_bits_of_a_materialization_and_takes_them_back(
    method: str, dtype: str, tmp_path: Path
) -> None:
    base, models = draw_normal(9, 3)
    for index, tensors in enumerate((base, *models)):
        tensors["square"] = torch.randn(16, 16, generator=torch.Generator().manual_seed(index))
        tensors["ids"] = torch.arange(3) + index
    written = [write_checkpoint(tmp_path / f"m{index}", model) for index, model in enumerate((base, *models))]
    out = tmp_path / "out"
    manifest = FileMerge(method, output_dtype=dtype)(written[0], written[1:], out)
    (tmp_path / "task").mkdir()
    materialize(LocalCheckpoint(id="artifact", path=out, manifest=manifest), "model-1", tmp_path / "task", ignore)
    page = _code()
    _, shared, dtypes = page["read_safetensors"](out / "model.safetensors")
    found = {name: tensor.copy() for name, tensor in shared.items()}
    metadata, patch, _ = page["read_safetensors"](out / "patches" / "model-1.safetensors")
    page["apply_patch"](found, dtypes, patch, _base_of(page, out))
    _, expected, _ = page["read_safetensors"](tmp_path / "task" / "model.safetensors")
    has_bits = any(f"{name}::mask" in patch and f"{name}::values" in patch for name in shared)
    assert (metadata["format"], metadata["task"]) == ("amalgam-patch", "model-1")
    assert metadata["version"] == ("3" if has_bits else "1")
    assert metadata["applies_to"] == manifest.weights_digest
    for name, tensor in expected.items():
        _assert_alike(page, found[name], tensor, dtypes[name], is_exact=f"{name}::a" not in patch)
    page["remove_patch"](found, shared, patch)
    for name, tensor in shared.items():
        np.testing.assert_array_equal(found[name], tensor)


def _base_of(page: dict[str, Any], folder: Path) -> Any:
    path = folder / "base.safetensors"
    return page["read_safetensors"](path)[1] if path.exists() else None


def _assert_alike(page: dict[str, Any], found: Any, expected: Any, dtype: str, *, is_exact: bool) -> None:
    if is_exact:
        np.testing.assert_array_equal(found, expected)
    else:  # two libraries may add up a product in another order, which shows where a sum lies between two numbers
        spacing = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}[dtype]
        wide = page["widen"](expected, dtype)
        np.testing.assert_allclose(page["widen"](found, dtype), wide, rtol=spacing, atol=1e-6)


def test_the_page_names_every_part() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for part in ("indices", "values", "b", "a", "mask", "signs", "scale"):
        assert f"`{part}`" in text
    for method in METHODS:
        assert f"`{method}`" in text
