"""What fusion-bench has as functions of tensors, and not as algorithms over a pool of models; runs in its environment.

Each takes base, models and the case, and returns what the tensors of the case become. What a function of theirs leaves
to its caller (adding the base, reading files, flattening) is done here, with their own helpers where there are any.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]
PACKED_BITS = 32


def merge_by_emr(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the model of one task, as its modulator makes it."""
    vectors = [_subtract(model, base) for model in models]
    unified, masks, scales = _find("method.emr_merging.utils").emr_merge(vectors)
    task = case["task"]
    return {name: base[name] + unified[name] * masks[name][task] * scales[task] for name in base}


def keep_by_tall_mask(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the model of one task: the sum of all task vectors behind its mask."""
    vectors = torch.stack([_flatten(_subtract(model, base)) for model in models])  # [n, m]
    masks = _mask(base, models, vectors, vectors.sum(dim=0), case)
    return _unflatten(_flatten(base) + masks[case["task"]] * vectors.sum(dim=0), base)


def keep_consensus(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the merge where enough tasks need it. Their function reads the masks from files: it is handed them."""
    vectors = torch.stack([_flatten(_subtract(model, base)) for model in models])  # [n, m]
    threshold = case["parameters"].get("ties_threshold")
    merged = vectors.sum(dim=0) if threshold is None else _merge_by_ties(vectors, threshold, "sum")
    masks = _mask(base, models, vectors, merged, case)
    utils = _find("method.tall_mask.utils")
    utils.load_tall_mask = lambda *_: {str(task): _unflatten(mask.float(), base) for task, mask in enumerate(masks)}
    consensus = utils.construct_consensus_mask(_clone(base), case["parameters"]["prun_thre_k"], None)
    return _unflatten(_flatten(base) + consensus * merged, base)


def compress_by_tsv(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the model of one task from its compressed task vector."""
    vectors = {"task": SimpleNamespace(vector=_subtract(models[case["task"]], base))}
    compress = _find("method.task_singular_vector.utils.TSVC_utils").compress_tv
    kept = compress(vectors, case["parameters"]["sv_reduction"])["task"]
    return {
        name: base[name] + (one["dim1"] if "dim1" in one else one["u"] @ one["s"].diag() @ one["v"])
        for name, one in kept.items()
    }


def keep_one_bit(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the matrices of one task from their signs; in rows of 32, which is what its packing takes.

    Its module holds a kernel beside the packing, and cannot be imported without Triton, which a CPU need not have.
    """
    sys.modules.setdefault("triton", MagicMock())
    sys.modules.setdefault("triton.language", MagicMock())
    packing = _find("method.bitdelta.bitdelta_utils.binary_gemm_kernel")
    make = _find("method.bitdelta.bitdelta_utils.diff").BinaryDiff
    found: Tensors = {}
    for name, tensor in base.items():
        if tensor.ndim < 2 or tensor.numel() % PACKED_BITS:
            continue
        one = make(tensor.view(-1, PACKED_BITS), models[case["task"]][name].view(-1, PACKED_BITS))
        signs = packing.unpack(one.mask) * 2 - 1  # as its load_diff does
        found[name] = (one.base + signs * one.coeff).T.reshape(tensor.shape)
    return found


def keep_largest(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the model of one task: the largest entries of what it has beyond a shared model; all in one row."""
    shared = _flatten(base)
    own = dict(case["parameters"])
    factor = own.pop("scaling_factor", None)
    if factor is not None:
        shared = shared + factor * sum(_flatten(_subtract(model, base)) for model in models)
    prune = _find("method").MagnitudeDiffPruningAlgorithm(extract_names=["row"], **own).magnitude_prune
    found = prune(_Row(shared), _Row(_flatten(models[case["task"]])))
    return _unflatten(found.row.detach().flatten(), base)


def merge_by_fisher(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the mean weighted by what is given as the models' Fisher information."""
    merge = _find("method.fisher_merging.fisher_merging").merging_with_fisher_weights
    statistics = [load_file(path) for path in case["statistics"]]
    values = {name: [model[name] for model in models] for name in base if name in statistics[0]}
    merged: Tensors = merge(values, statistics, torch.tensor(case["weights"]), **case["parameters"])
    return merged


def merge_by_regmean(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the regression mean on what is given as the models' Gram matrices."""
    merge = _find("method.regmean.regmean").merging_with_regmean_weights
    values = {name: [model[name] for model in models] for name in base}
    grams = [
        {name.removesuffix(".weight"): gram for name, gram in load_file(path).items()} for path in case["statistics"]
    ]
    merged: Tensors = merge(values, grams, **case["parameters"])
    return merged


def merge_aligned(base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return the merge of updates in their common basis: all coordinates summed, or merged by TIES."""
    align = _find("method.knots.knots_utils").subspace_alignment
    turned = case["parameters"]["turned"]  # stored as [in, out]
    bases: Tensors = {}
    parts: list[Tensors] = [{} for _ in models]
    for name, tensor in base.items():
        if tensor.ndim < 2:
            continue
        deltas = [_as_matrix(model[name] - tensor, turned=name in turned) for model in models]
        left, values, rights = align(deltas)
        bases[name] = left
        for part, right in zip(parts, rights, strict=True):
            part[name] = values.diag() @ right  # [k, in]
    flat = torch.stack([_flatten(part) for part in parts])
    threshold = case["parameters"].get("ties_threshold")
    merged = flat.sum(dim=0) if threshold is None else _merge_by_ties(flat, threshold, "mean")
    coordinates = _unflatten(merged, parts[0])
    moved = {name: left @ coordinates[name] for name, left in bases.items()}
    return {
        name: tensor + _from_matrix(moved[name], tensor, turned=name in turned) if name in moved else tensor
        for name, tensor in base.items()
    }


def stack_layers(_base: Tensors, models: Sequence[Tensors], case: Mapping[str, Any]) -> Tensors:
    """Return one model with its layers stacked anew."""
    at = case["parameters"]["layers_at"]  # what stands before a layer's number
    layers = nn.ModuleList()
    for index in range(case["parameters"]["n_layers"]):
        own = f"{at}{index}."
        layers.append(_Bag({name.removeprefix(own): one for name, one in models[0].items() if name.startswith(own)}))
    stacked = _find("method").DepthUpscalingAlgorithm(case["parameters"]["layer_indices"]).run(layers)
    rest = {name: tensor for name, tensor in models[0].items() if not name.startswith(at)}
    return rest | {
        f"{at}{index}.{name}": tensor for index, layer in enumerate(stacked) for name, tensor in layer.tensors.items()
    }


def run_linearized(case: Mapping[str, Any]) -> Tensors:
    """Return the outputs of merged linearized adapters, expanded as they run, and those of our dense model.

    What puts the wrapper around LoRA layers cannot be imported beside transformers 5 (it asks for CLIP's old names), so
    that is done here.
    """
    wrap = _find("models.linearized.linearized_model_utils").LinearizedModelWraper
    peft = import_module("peft")
    lora_layer = import_module("peft.tuners.lora").LoraLayer
    small = import_module("oracle_peft")

    def load(folder: str, *, is_start: bool) -> nn.Module:
        config = peft.LoraConfig.from_pretrained(folder)
        model: nn.Module = peft.get_peft_model(small.load_model(case["base"]), config)
        adapted = [name for name, module in model.named_modules() if isinstance(module, lora_layer)]
        for name in adapted:
            at, _, own = name.rpartition(".")
            setattr(model.get_submodule(at), own, wrap(model.get_submodule(name)))
        for name, tensor in load_file(Path(folder) / "linearized_adapter_model.safetensors").items():
            model.get_parameter(name).data = tensor
        wrappers: list[Any] = [module for module in model.modules() if hasattr(module, "params0_values")]
        for wrapper in wrappers if is_start else ():
            wrapper.model.load_state_dict(dict(zip(wrapper.params0_keys, wrapper.params0_values, strict=True)))
        return model

    pool = {f"model-{index}": load(folder, is_start=False) for index, folder in enumerate(case["adapters"])}
    pool["_pretrained_"] = load(case["adapters"][0], is_start=True)
    own = dict(case["parameters"])
    algorithm = getattr(_find("method"), own.pop("algorithm"))(**own)
    merged = algorithm.run(_find("modelpool").BaseModelPool(pool))
    tokens = small.draw_tokens()
    return {"outputs": merged(tokens).detach(), "ours.outputs": small.load_model(case["ours"])(tokens)}


FUNCTIONS: Mapping[str, Callable[[Tensors, Sequence[Tensors], Mapping[str, Any]], Tensors]] = {
    "emr_merge": merge_by_emr,
    "generate_task_masks": keep_by_tall_mask,
    "construct_consensus_mask": keep_consensus,
    "compress_tv": compress_by_tsv,
    "BinaryDiff": keep_one_bit,
    "MagnitudeDiffPruningAlgorithm": keep_largest,
    "merging_with_fisher_weights": merge_by_fisher,
    "merging_with_regmean_weights": merge_by_regmean,
    "subspace_alignment": merge_aligned,
    "DepthUpscalingAlgorithm": stack_layers,
}


class _Row(nn.Module):
    """A whole model as one row, since its pruning ranks each row by itself."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(values.clone().view(1, -1))


class _Bag(nn.Module):
    """Tensors under any name."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = tensors


def _mask(base: Tensors, models: Sequence[Tensors], vectors: Tensor, merged: Tensor, case: Mapping[str, Any]) -> Tensor:
    generate = _find("method.tall_mask.utils").generate_task_masks
    masks: Tensor = generate(
        vectors,
        torch.stack([_flatten(model) for model in models]),
        _flatten(base),
        tv=merged,
        tall_mask_lambda=case["parameters"]["tall_mask_lambda"],
    )
    return masks


def _merge_by_ties(vectors: Tensor, threshold: float, reduce: str) -> Tensor:
    merged: Tensor = _find("method.ties_merging.ties_merging_utils").ties_merging(vectors, threshold, reduce)
    return merged


def _find(module: str) -> Any:
    return import_module(f"fusion_bench.{module}")


def _subtract(model: Tensors, base: Tensors) -> Tensors:
    return {name: model[name] - base[name] for name in base}


def _clone(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _flatten(tensors: Tensors) -> Tensor:
    flat: Tensor = _find("utils.parameters").state_dict_to_vector(tensors)
    return flat


def _unflatten(flat: Tensor, like: Tensors) -> Tensors:
    tensors: Tensors = _find("utils.parameters").vector_to_state_dict(flat, _clone(like))  # it writes into what it gets
    return tensors


def _as_matrix(tensor: Tensor, *, turned: bool) -> Tensor:
    return tensor.T if turned else tensor.reshape(len(tensor), -1)


def _from_matrix(matrix: Tensor, like: Tensor, *, turned: bool) -> Tensor:
    return (matrix.T if turned else matrix).reshape(like.shape)
