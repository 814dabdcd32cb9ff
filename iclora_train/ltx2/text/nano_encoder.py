"""nano's text encoder: hashed words and two small transformer layers. (The real models use Gemma.)

A vocabulary file is not needed: the number of a word is its CRC-32 modulo the table size. Unused positions hold learned
registers, as in LTX-2, so that each of the T tokens has a meaning and an attention mask is not needed.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class NanoTextConfig:
    """words: size of the hash table; tokens: per caption; width: inside the encoder; output: width of its features."""

    words: int = 4096
    tokens: int = 16
    width: int = 128
    output: int = 256
    layers: int = 2
    heads: int = 4


class NanoTextEncoder(nn.Module):
    """Captions -> features (B,T,D). Attention is bidirectional; T is the same for every caption."""

    def __init__(self, config: NanoTextConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.words, config.width)
        self.register = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.position = nn.Parameter(torch.zeros(config.tokens, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.out = nn.Linear(config.width, config.output)

    def tokenize(self, captions: list[str]) -> Tensor:
        """Word numbers (B,T), -1 where a register is used; words beyond T are dropped."""
        ids = torch.full((len(captions), self.config.tokens), -1)
        for row, caption in zip(ids, captions, strict=True):
            words = _WORD.findall(caption.lower())[: self.config.tokens]
            for position, word in enumerate(words):
                row[position] = zlib.crc32(word.encode()) % self.config.words
        return ids

    def forward(self, ids: Tensor) -> Tensor:
        """Word numbers (B,T) -> features (B,T,D)."""
        words = torch.where(ids[..., None] >= 0, self.word(ids.clamp(min=0)), self.register)
        return self.out(self.layers(words + self.position))

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Captions -> features (B,T,D) on the encoder's device."""
        return self(self.tokenize(captions).to(self.register.device))
