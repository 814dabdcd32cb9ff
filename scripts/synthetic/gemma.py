"""Gemma with random weights, without a download: folders in transformers' format, and LTX-2.5's packed file.

The tokenizer is small at both sizes: bytes, letters and three longer tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from iclora_train.ltx2.weights.versions import VERSIONS
from scripts.synthetic.configs import GEMMA, GEMMA_VERSION, since

WIDTH, LAYERS = GEMMA["tiny"]
INPUTS = WIDTH * (LAYERS + 1)  # input width of the text projection
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_TINY = {
    "vocab_size": 512,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "max_position_embeddings": 2048,
    "layer_types": ["sliding_attention", "full_attention"],
}
_FULL = {  # Gemma 3 12B
    "vocab_size": 262208,
    "hidden_size": GEMMA["full"][0],
    "intermediate_size": 15360,
    "num_hidden_layers": GEMMA["full"][1],
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "max_position_embeddings": 131072,
}
_SIZES = {"tiny": _TINY, "full": _FULL}
_VISION = {
    "gemma3": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "gemma4_unified": {"mm_embed_dim": 16, "mm_posemb_size": 8, "output_proj_dims": 16},
}


def tiny_tokenizer(bos: bool) -> Tokenizer:
    """A tokenizer like Gemma's: BPE with byte fallback, spaces as U+2581; with `bos` it adds <bos>."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *letters, "th", "the", "\u2581the"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)]
        )
    return tokenizer


def write_tiny_tokenizer(folder: Path, bos: bool = True) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(bos).save(str(folder / "tokenizer.json"))
    about = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}
    about |= {"tokenizer_class": "GemmaTokenizer", "padding_side": "left", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def random_gemma(kind: str, seed: int = 0, size: str = "tiny", device: str = "cpu") -> Any:
    """transformers' full model (vision included) of `gemma3` or `gemma4_unified` with random weights.

    The weights are fp32 at size tiny and bf16 at size full.
    """
    import transformers  # noqa: PLC0415 (slow)

    name = {"gemma3": "Gemma3", "gemma4_unified": "Gemma4Unified"}[kind]
    config_class, model_class = (getattr(transformers, name + end) for end in ("Config", "ForConditionalGeneration"))
    text = dict(_SIZES[size])
    if kind == "gemma4_unified":
        text |= {"global_head_dim": text["head_dim"] * 4 // 3, "attention_k_eq_v": True}
        text |= {"num_global_key_value_heads": 1}
    config = config_class(text_config=text, vision_config=_VISION[kind])
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = model_class._from_config(config, dtype=torch.float32 if size == "tiny" else torch.bfloat16).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3 if size == "tiny" else 0.02)
        for name, scalar in model.named_buffers():
            if name.endswith("layer_scalar"):  # Gemma 4's weight per layer, which is saved with the parameters
                scalar.uniform_(0.5, 1.5)
    return model


def write_gemma(
    folder: Path,
    kind: str = "gemma3",
    seed: int = 0,
    bos: bool = True,
    size: str = "tiny",
    device: str = "cpu",
    **config: Any,
) -> Path:
    """Write a folder in transformers' format: config.json (with the fields of `config` added), weights, tokenizer."""
    random_gemma(kind, seed, size, device).save_pretrained(folder, max_shard_size="5GB")
    write_tiny_tokenizer(folder, bos)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def gemma_for(version: str, folder: Path, size: str = "tiny", device: str = "cpu") -> Path:
    """Write a random text encoder of the kind that base `version` needs. Returns its folder."""
    fields = {"gemma_version": GEMMA_VERSION} if since("2.5", version) else {}
    return write_gemma(folder, VERSIONS[version].gemma, size=size, device=device, **fields)


def pack_tiny_gemma(folder: Path, file: Path, projection: dict[str, Tensor]) -> Path:
    """Write LTX-2.5's packed text encoder: language model with flat keys, text projection, config and tokenizer."""
    tensors = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        tensors[key.replace("model.language_model.", "model.").replace("model.embed_vision.", "vision_model.")] = tensor
    text = (folder / "tokenizer.json").read_bytes()
    tensors |= projection | {"tokenizer_json": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    about = {"format": "pt", "gemma_config": (folder / "config.json").read_text()}
    save_file(tensors, file, about)
    return file
