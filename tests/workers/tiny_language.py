"""A T5 and a GPT-2 of a few hundred parameters, with a tokenizer of words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.workers.tiny_bert import WORDS

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")


def make_tokenizer(*, is_causal: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words; a causal model's has no padding token, the other's ends texts with </s>."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "</s>"}
    if is_causal:
        special["bos_token"] = "<s>"
    else:
        special["pad_token"] = "<pad>"
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]


def make_t5(folder: Path, *, seed: int = 0) -> Path:
    """Write a T5, its tokenizer, and settings for generation that ask for sampling."""
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(SPECIAL) + len(WORDS),
            d_model=8,
            d_kv=4,
            d_ff=12,
            num_layers=1,
            num_heads=2,
            initializer_factor=4.0,
        )
    )
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=3.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
    )
    model.save_pretrained(folder)
    make_tokenizer(is_causal=False).save_pretrained(folder)
    return folder


def make_gpt2(folder: Path, *, seed: int = 0) -> Path:
    """Write a GPT-2 with 12 positions, and its tokenizer."""
    torch.manual_seed(seed)
    size = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 12, "initializer_range": 0.5}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(SPECIAL) + len(WORDS), bos_token_id=3, eos_token_id=1, **size)  # type: ignore[arg-type]
    )
    model.save_pretrained(folder)
    make_tokenizer(is_causal=True).save_pretrained(folder)
    return folder
