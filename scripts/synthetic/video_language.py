"""A tiny Qwen3-VL with random weights, without a download: model, tokenizer, image processor and chat template.

The tokenizer has whole words: those of the answers that a test teaches the model, and digits for the times of frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

SPECIAL = (
    *("<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
# as Qwen's own template, for messages of texts, pictures and videos
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = 32 * 32  # of a frame after resizing: one token


def write_qwen3_vl(folder: Path, words: Iterable[str], seed: int = 0) -> Path:
    """Write a folder in transformers' format. words: those that the model can read and write."""
    import transformers  # noqa: PLC0415 (slow)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    known = dict.fromkeys([*SPECIAL, *"0123456789<>", "seconds", "user", "assistant", *words])
    ids = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # spaces between words, none before a full stop
    names = {"unk_token": "<unk>", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(SPECIAL[2:]), **names
    ).save_pretrained(folder)
    ends = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    text = {"vocab_size": len(ids), "num_hidden_layers": 2, "head_dim": 16, "rope_parameters": rope} | small | ends
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "depth": 2, "out_hidden_size": 32}
    config = transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.Qwen3VLForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(**ends)
    model.save_pretrained(folder)
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    transformers.Qwen2VLImageProcessorPil(patch_size=16, size=size, **statistics).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder
