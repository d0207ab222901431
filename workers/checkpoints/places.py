"""Which tensor of a checkpoint's files a weight of the model in memory holds, told by the names of both.

A file may name an encoder's tensors with the prefix of a model with a head (`bert.encoder…`) or without it. Models
named otherwise than their files are refused: a weight that is not found would silently not be learned on.
"""

from collections.abc import Mapping

from torch import nn

from app.domain.checkpoints import Manifest
from app.domain.errors import ModelNotRunnable

_UNUSED_PREFIXES = ("pooler.",)  # features are taken before the pooler, so files may lack it
_MANY = 5  # how many names a message lists


def find_places(module: nn.Module, manifest: Manifest) -> dict[str, str]:
    """Return the tensor of the files per path of a parameter or buffer; a head that the files lack has none.

    A tensor that several names share goes by the first of them. Raises: ModelNotRunnable naming what has no tensor.
    """
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    has_head = getattr(module, "base_model", module) is not module
    first = {name: group[0] for group in manifest.tied for name in group}
    names = {tensor.name: first.get(tensor.name, tensor.name) for tensor in manifest.tensors}
    places: dict[str, str] = {}
    homeless: list[str] = []
    weights = dict(module.named_parameters(remove_duplicate=False))
    held = {id(weights[path]): found for path in weights if (found := _find(path, prefix, names)) is not None}
    for path in (*weights, *(path for path, _ in module.named_buffers(remove_duplicate=False))):
        found = _find(path, prefix, names)
        if found is None and path in weights:
            found = held.get(id(weights[path]))  # one weight under several paths, of which the files name one
        is_in_body = path.startswith(prefix) if has_head else not path.startswith(_UNUSED_PREFIXES)
        if found is not None:
            places[path] = found
        elif is_in_body and path in weights:
            homeless.append(path)
    if homeless:
        more = f" and {len(homeless) - _MANY} more" if len(homeless) > _MANY else ""
        raise ModelNotRunnable(
            f"{len(homeless)} weights of the {type(module).__name__} in memory have no tensor of their name in the "
            f"base model's files: {', '.join(homeless[:_MANY])}{more}. Methods that learn need files that name tensors "
            "as the model does, with or without the prefix of its encoder."
        )
    return places


def _find(path: str, prefix: str, names: Mapping[str, str]) -> str | None:
    for name in (path, prefix + path, path.removeprefix(prefix)):
        if name in names:
            return names[name]
    return None
