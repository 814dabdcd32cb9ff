"""A node pack for tests: text features are random numbers of the prompt instead of the outputs of a 12 B text encoder.

The loader nodes stay ComfyUI's. A text encoder's file needs no weights; the width of the features is that of the text
projection, which is in the checkpoint (LTX-2, 2.3) or in the text encoder's file (2.5). They enter the connectors of
the base like real ones.
"""

from __future__ import annotations

import zlib
from typing import Any

import comfy.ldm.lightricks.model
import comfy.sd
import torch
from safetensors import safe_open

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
PROJECTION = "text_embedding_projection."
# Functions that ComfyUI 0.29 removed and ComfyUI-LTXVideo of June 2026 imports, for text encoders that no test uses.
REMOVED = ("interleaved_freqs_cis", "split_freqs_cis")


class RandomText:
    """What CLIPTextEncode calls of a text encoder."""

    def __init__(self, width: int) -> None:
        self.width = width

    def tokenize(self, text: str, **_: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str, **_: Any) -> list[Any]:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        features = torch.randn(1, 8, self.width, generator=generator)
        return [[features, {"pooled_output": None, "unprocessed_ltxav_embeds": True}]]


def load_text_encoder(ckpt_paths: list[str], *_: Any, **__: Any) -> RandomText:
    """Stands in for comfy.sd.load_clip."""
    width = 0
    for path in ckpt_paths:
        with safe_open(path, "pt") as file:
            keys = [key for key in file.keys() if key.startswith(PROJECTION) and key.endswith(".weight")]  # noqa: SIM118
            width += sum(file.get_slice(key).get_shape()[0] for key in keys)
    assert width, f"none of {ckpt_paths} has a text projection"
    return RandomText(width)


def _removed(*_: Any, **__: Any) -> None:
    raise RuntimeError("ComfyUI 0.29 removed this function")


comfy.sd.load_clip = load_text_encoder
for _name in REMOVED:
    if not hasattr(comfy.ldm.lightricks.model, _name):
        setattr(comfy.ldm.lightricks.model, _name, _removed)
