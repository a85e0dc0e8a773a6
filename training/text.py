"""The tokenizer and the two one-layer text encoders; they are trained along with the transformer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from training.landscapes import COLOURS, GROUNDS, OBJECTS, SKIES, all_captions

LENGTH = 10  # nine words at most, and the end token
WIDTH = 64
# FluxPipeline's CLIP takes the pooled state at the end token, and treats end id 2 as a legacy special case.
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
PAD_ID, END_ID = 0, 1


def vocabulary() -> list[str]:
    words = ["a", "on", "at", "with", "mountains", *COLOURS, *OBJECTS, *GROUNDS, *SKIES]
    return [PAD, END, UNKNOWN, *words]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; the end token comes from a post-processor, because the class adds none itself."""
    words = {word: i for i, word in enumerate(vocabulary())}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, END_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=LENGTH
    )


def token_table() -> Tensor:
    """Token ids of every caption and, last, of the empty prompt: [captions + 1, LENGTH]."""
    prompts = [str(caption) for caption in all_captions()] + [""]
    tokenizer = build_tokenizer()
    return tokenizer(prompts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids


def build_clip() -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocabulary()), hidden_size=WIDTH, intermediate_size=2 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=LENGTH,
        pad_token_id=PAD_ID, bos_token_id=PAD_ID, eos_token_id=END_ID,
    ))  # fmt: skip


def build_t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(
        vocab_size=len(vocabulary()), d_model=WIDTH, d_ff=2 * WIDTH, d_kv=WIDTH // 2, num_heads=2,
        num_layers=1, dropout_rate=0.0, pad_token_id=PAD_ID, eos_token_id=END_ID,
    ))  # fmt: skip


class TextEncoders(torch.nn.Module):
    """Both encoders as FluxPipeline calls them: pooled CLIP state and all T5 states, no attention mask."""

    def __init__(self) -> None:
        super().__init__()
        self.clip, self.t5 = build_clip(), build_t5()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.clip(ids).pooler_output, self.t5(ids)[0]  # [B, WIDTH], [B, LENGTH, WIDTH]
