"""Runnable language models: a checkpoint folder becomes a text-to-text model or a causal one, with its tokenizer.

Loading is as in workers/checkpoints/model.py. Answers are generated greedily: of the checkpoint's settings for
generation only the special tokens count, so that sampling, beams and penalties do not differ between models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import NotFinite
from workers.checkpoints.model import Encoder, count_embedded, load_module, load_tokenizer, max_tokens_of

IGNORED = -100  # a target that the library's losses pass over


@dataclass(frozen=True)
class TextToText(Encoder):
    """A model that answers a text with a text (T5 and its kin)."""

    def answer(self, texts: Sequence[str], *, max_tokens: int, max_new_tokens: int) -> list[str]:
        """Return the greedily generated answers to a batch of texts.

        Raises: NotFinite when the model gives no numbers.
        """
        found = self.module.generate(  # type: ignore[operator]  # the library's mixin is untyped
            **self.tokenize(texts, max_tokens=max_tokens),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        if not all(bool(torch.isfinite(logits).all()) for logits in found.logits):
            raise NotFinite(
                "The checkpoint's logits are NaN or infinite, expected finite. Look for NaN in its weights, or merge "
                "with a smaller scaling_coefficient."
            )
        answers: list[str] = self.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        return answers

    def predict(
        self, texts: Sequence[str], answers: Sequence[str], *, max_tokens: int, max_new_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of each token of wanted answers given those before it, and these tokens.

        Logits [n, t, vocabulary] float32; tokens [n, t], padding IGNORED.
        """
        targets = self.targets(answers, max_tokens=max_new_tokens)
        found = self.module(**self.tokenize(texts, max_tokens=max_tokens), labels=targets, use_cache=False)
        return found.logits.float(), targets

    def targets(self, answers: Sequence[str], *, max_tokens: int) -> Tensor:
        """Return the tokens of wanted answers, [n, t], padding IGNORED; longer ones are cut."""
        batch = self.tokenizer(
            text_target=list(answers), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        tokens: Tensor = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return tokens.to(self.module.device)


@dataclass(frozen=True)
class CausalModel(Encoder):
    """A model that predicts the next token (GPT-2 and its kin); texts of a batch are padded here, on the right."""

    def token_losses(self, windows: Sequence[Sequence[int]]) -> Tensor:
        """Return -log p of each token but the first given those before it, [n, t - 1] float32; 0 where a row has ended.

        windows: token ids, each at least two.
        """
        logits, targets = self.predict(windows)
        return torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
        )

    def predict(self, windows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return the logits of each token but the first given those before it, and these tokens.

        Logits [n, t - 1, vocabulary] float32; tokens [n, t - 1], padding IGNORED. windows: as above.
        """
        length = max(map(len, windows))
        padded = [[*window, *[0] * (length - len(window))] for window in windows]
        mask = [[1] * len(window) + [0] * (length - len(window)) for window in windows]
        ids = torch.tensor(padded, device=self.module.device)  # [n, t]
        kept = torch.tensor(mask, device=self.module.device)
        logits: Tensor = self.module(input_ids=ids, attention_mask=kept, use_cache=False).logits  # [n, t, vocabulary]
        return logits[:, :-1].float(), ids.masked_fill(kept == 0, IGNORED)[:, 1:]


def load_text_to_text(checkpoint: LocalCheckpoint, device: torch.device) -> TextToText:
    """Load a checkpoint as a text-to-text model.

    Raises: ModelNotRunnable when the files do not make one with a tokenizer.
    """
    module = load_module(AutoModelForSeq2SeqLM, checkpoint, device)
    _keep_tokens_alone(module)
    tokenizer = load_tokenizer(checkpoint, n_embedded=count_embedded(module))
    return TextToText(module, tokenizer, max_tokens_of(module, tokenizer))


def load_causal(checkpoint: LocalCheckpoint, device: torch.device) -> CausalModel:
    """Load a checkpoint as a causal language model; its tokenizer needs no padding token.

    Raises: ModelNotRunnable when the files do not make one with a tokenizer.
    """
    module = load_module(AutoModelForCausalLM, checkpoint, device)
    tokenizer = load_tokenizer(checkpoint, n_embedded=count_embedded(module), needs_padding=False)
    return CausalModel(module, tokenizer, max_tokens_of(module, tokenizer))


def _keep_tokens_alone(module: PreTrainedModel) -> None:
    given = module.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    kept = {name: getattr(given, name, None) for name in names}
    module.generation_config = GenerationConfig(**kept)  # type: ignore[no-untyped-call]
    if getattr(module.config, "decoder_start_token_id", None) is None:  # newer checkpoints have it in one place only
        module.config.decoder_start_token_id = kept["decoder_start_token_id"]
