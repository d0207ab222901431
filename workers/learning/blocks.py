"""What a model's blocks give, one after the other, while it runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from app.domain.errors import ModelNotRunnable
from workers.surgery import body_of, find_block, first_of, with_first

Correction = Callable[[Tensor], Tensor]


@dataclass
class BlockOutputs:
    """What the blocks of a model have given since they were last taken."""

    model: nn.Module
    paths: Sequence[str]  # within the model's body
    widths: dict[str, int] = field(default_factory=dict)  # of what each block has given
    _found: list[Tensor] = field(default_factory=list)
    _mask: Tensor | None = None

    @contextmanager
    def watching(self, corrections: Mapping[str, Correction] | None = None) -> Iterator[None]:
        """Note what each block gives meanwhile, corrected where there is a correction for it, which then runs on."""
        body, chosen = body_of(self.model), corrections or {}
        handles = [self.model.register_forward_pre_hook(self._note_mask, with_kwargs=True)]
        handles += [
            find_block(body, path).register_forward_hook(self._hook(path, chosen.get(path))) for path in self.paths
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take(self) -> list[Tensor]:
        """Return what the blocks gave, each [n, width]: of all tokens but padding, in the order in which they ran."""
        found, mask = self._found, self._mask
        self._found, self._mask = [], None
        return [one.flatten(end_dim=1) if mask is None else one[mask.bool()] for one in found]

    def _note_mask(self, _module: nn.Module, _arguments: object, named: dict[str, Any]) -> None:  # of any model
        self._mask = named.get("attention_mask")

    def _hook(self, path: str, correct: Correction | None) -> Callable[..., Any]:
        def note(
            _block: nn.Module, _arguments: object, output: Any
        ) -> Any:  # a tensor, or a tuple that begins with one
            found = first_of(output)
            if found.ndim != 3:
                raise ModelNotRunnable(
                    f"The block {path!r} of a {type(self.model).__name__} gives {list(found.shape)}, expected "
                    "[n, tokens, width] as a transformer's does; use surgery, which corrects features before the head."
                )
            self.widths[path] = found.shape[-1]
            corrected = found if correct is None else correct(found)
            self._found.append(corrected)
            return None if correct is None else with_first(output, corrected)

        return note


def find_blocks(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Return the paths of the blocks that run, within the model's body: entries of its outermost lists of modules.

    Raises: ModelNotRunnable for a model that has none.
    """
    body = body_of(model)
    lists = [path for path, one in body.named_modules() if isinstance(one, nn.ModuleList)]
    outermost = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    ran: dict[str, None] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda *_: ran.setdefault(path)

    handles = [
        block.register_forward_pre_hook(note(f"{path}.{name}"))
        for path in outermost
        for name, block in body.get_submodule(path).named_children()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise ModelNotRunnable(
            f"A {type(model).__name__} runs no list of blocks, behind which modules could stand; use surgery, which "
            "corrects the features before the head."
        )
    return list(ran)
