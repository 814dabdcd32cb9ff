"""Tiny vision-language models with random weights, without a download: Qwen3-VL, Qwen2.5-VL, Qwen3.5 and Gemma 3.

Each is a folder in transformers' format with model, tokenizer, image processor and chat template. The tokenizers of the
Qwen models have whole words: those of the answers that a test teaches the model, and digits for the times of frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from scripts.synthetic.gemma import random_gemma, tiny_tokenizer

SPECIAL = (
    *("<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
# as Qwen's own template, for messages of texts and pictures
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
_ROPE_3_5 = {**_ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5}
_LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
_POSITIONS = {"num_position_embeddings": 16}
# name in transformers, settings of the language model and of the vision encoder, patch size
QWEN: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "qwen3_vl": (
        "Qwen3VL",
        {"head_dim": 16, "rope_parameters": {**_ROPE, "mrope_interleaved": True}},
        {**_POSITIONS, "deepstack_visual_indexes": [0]},
        16,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {"rope_parameters": _ROPE, "bos_token_id": None},
        {"fullatt_block_indexes": [1], "window_size": 56},
        14,
    ),
    "qwen3_5": (
        "Qwen3_5",
        {
            "head_dim": 16,
            "rope_parameters": _ROPE_3_5,
            "layer_types": ["linear_attention", "full_attention"],
            **_LINEAR,
        },
        _POSITIONS,
        16,
    ),
}


def write_qwen(folder: Path, words: Iterable[str], kind: str = "qwen3_vl", seed: int = 0) -> Path:
    """Write a model of QWEN. words: those that it can read and write. A frame is one token, whatever its size."""
    import transformers  # noqa: PLC0415 (slow)

    ids = _write_words(folder, words)
    ends = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    name, more_text, more_vision, patch = QWEN[kind]
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "depth": 2, "out_hidden_size": 32}
    config = getattr(transformers, f"{name}Config")(
        text_config={"vocab_size": len(ids), "num_hidden_layers": 2, **text, **more_text, **ends},
        vision_config={**vision, **more_vision, "patch_size": patch},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    model.generation_config = transformers.GenerationConfig(**ends)
    model.save_pretrained(folder)
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (2 * patch) ** 2}
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    transformers.Qwen2VLImageProcessorPil(patch_size=patch, size=size, **statistics).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def _write_words(folder: Path, words: Iterable[str]) -> dict[str, int]:
    """Write a tokenizer of whole words and single digits. Returns the number of each word."""
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
    return ids


def use_official_names(folder: Path, nested: bool) -> None:
    """Write the processor's files of a Qwen folder as its publisher does, or nested in one as transformers 5 does."""
    file = folder / "preprocessor_config.json"
    image = {**json.loads(file.read_text()), "image_processor_type": "Qwen2VLImageProcessorFast"}
    video = {**image, "video_processor_type": "Qwen3VLVideoProcessor"}
    del video["image_processor_type"]
    if nested:
        file.unlink()
        both = {"image_processor": image, "video_processor": video, "processor_class": "Qwen3VLProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(both))
    else:
        file.write_text(json.dumps({**image, "processor_class": "Qwen3VLProcessor"}))
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video))


def write_gemma3_for_pictures(folder: Path) -> Path:
    """Write the tiny Gemma 3 of `gemma.py` with the parts that reading pictures needs."""
    import transformers  # noqa: PLC0415 (slow)

    model = random_gemma("gemma3")
    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(True), extra_special_tokens=tokens, **names
    )
    tokenizer.save_pretrained(folder)
    boi, eoi, soft = tokenizer.convert_tokens_to_ids(list(tokens.values()))
    size = model.config.vision_config.image_size
    count = (size // model.config.vision_config.patch_size) ** 2  # tokens of a picture
    places = {"boi_token_index": boi, "eoi_token_index": eoi, "image_token_index": soft, "mm_tokens_per_image": count}
    parts = {"text_config": model.config.text_config.to_dict(), "vision_config": model.config.vision_config.to_dict()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(**parts, **places))
        for parameter in model.parameters():  # its projection of pictures begins with zeros
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config = transformers.GenerationConfig(eos_token_id=[tokenizer.eos_token_id], pad_token_id=0)
    model.save_pretrained(folder)
    transformers.Gemma3ImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    about = {"image_seq_length": count, "processor_class": "Gemma3Processor"}
    (folder / "processor_config.json").write_text(json.dumps(about))
    chat = CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", tokens["boi_token"])
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + chat)
    return folder
