"""Runs in PEFT's own virtual environment: loads adapters on a small model and writes the dense models they make.

Usage: python oracle_peft.py CASES.json; a case names base, adapters, output, call, parameters, weights; `ours` where
an adapter of ours is loaded, with the dense model that we say it makes: both are run on the same inputs.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Model(nn.Module):
    """One module of every kind that LoRA adapts, in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.dense = nn.Linear(16, 16)
        self.c_fc: nn.Module = Conv1D(24, 16)  # type: ignore[no-untyped-call]  # GPT-2's, [in, out]
        self.norm = nn.LayerNorm(24)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Linear(48, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [n, t]; result: [n, t, 5]."""
        hidden = torch.tanh(self.dense(self.embed(tokens)))
        hidden = self.norm(self.c_fc(hidden))  # [n, t, 24]
        kernels = self.conv(hidden.reshape(-1, 2, 3, 4)).reshape(*tokens.shape, 48)
        outputs: Tensor = self.head(torch.tanh(kernels))
        return outputs


def main() -> None:
    """Run every case and write its result."""
    tokens = draw_tokens()
    for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        with torch.no_grad():
            save_file(_run(case, tokens), case["output"])


def draw_tokens() -> Tensor:
    """Return what models are run on: [3, 7]."""
    return torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(0))


def _run(case: dict[str, Any], tokens: Tensor) -> dict[str, Tensor]:
    first, *others = case["adapters"]
    loaded = PeftModel.from_pretrained(load_model(case["base"]), first, adapter_name="0")
    for index, folder in enumerate(others):
        loaded.load_adapter(folder, adapter_name=str(index + 1))
    extra: dict[str, Tensor] = {}
    if case["call"] == "add_weighted_adapter":
        names = [str(index) for index in range(len(case["adapters"]))]
        loaded.add_weighted_adapter(names, case["weights"], "merged", **case["parameters"])
        loaded.set_adapter("merged")
    if "ours" in case:
        extra["outputs"] = loaded.eval()(tokens)
        extra["ours.outputs"] = load_model(case["ours"]).eval()(tokens)
    merged = loaded.merge_and_unload()
    return {name: tensor.contiguous().clone() for name, tensor in merged.state_dict().items()} | extra


def load_model(path: str) -> Model:
    """Return the model with the weights of a file."""
    model = Model()
    model.load_state_dict(load_file(path))
    return model


if __name__ == "__main__":
    main()
