"""Captions -> features for the text attention of the streams: tokenizer, Gemma's language model, connectors.

As in ltx-core: the stripped caption without a chat template, `<bos>` before it, at most 1024 tokens, padded on the
left. The connectors receive the states of all layers (49 of width 3840 in the 12B models, including the embedding and
the last norm).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.config import ConfigError
from iclora_train.ltx2.text.connectors import TOKENS, Connectors
from iclora_train.ltx2.text.gemma_files import GemmaFiles
from iclora_train.ltx2.weights.assign import assign_tensor, check_keys, shapes_of
from iclora_train.ltx2.weights.safetensors_header import DTYPES

BATCH = 4  # captions at once; the 49 states of 1024 x 3840 in bf16 of one caption are 0.4 GB
_FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

log = logging.getLogger(__name__)


class GemmaTextEncoder(nn.Module):
    """Gemma and the connectors, frozen, with the interface of `NanoTextEncoder`."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, connectors: Connectors, audio_connectors: Connectors | None = None
    ) -> None:
        super().__init__()
        self.model, self.connectors, self.audio_connectors = model, connectors, audio_connectors
        self.tokenizer = tokenizer
        self.bos, self.pad = tokenizer.token_to_id("<bos>"), tokenizer.token_to_id("<pad>")

    @classmethod
    def open(
        cls,
        folder: Path,
        version: str,
        connectors: Connectors,
        dtype: torch.dtype = torch.bfloat16,
        gemma_version: str | None = None,
        device: torch.device | str = "cpu",
        audio_connectors: Connectors | None = None,
    ) -> GemmaTextEncoder:
        """The text encoder of base `version` on `device`, from a folder or a packed file (`gemma_files`).

        audio_connectors: those of the audio stream, for `encode_both`.
        gemma_version: as in the checkpoint's `gemma_source_checkpoint`. ConfigError for an encoder that does not fit.
        """
        from tokenizers import Tokenizer  # noqa: PLC0415 (only here, and slow with transformers)

        files = GemmaFiles.open(folder)
        files.check(version, gemma_version)
        tokenizer = Tokenizer.from_str(files.tokenizer.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if None in (tokenizer.token_to_id("<bos>"), tokenizer.token_to_id("<pad>")):
            raise ConfigError(f"the tokenizer of model.text_encoder={folder} has no <bos> or <pad>: it is not Gemma's")
        model = _language_model(files, connectors.inputs, dtype, device)
        audio = None if audio_connectors is None else audio_connectors.to(device, dtype)
        return cls(model, tokenizer, connectors.to(device, dtype), audio).requires_grad_(False).eval()

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token numbers and mask (B,TOKENS), padded on the left. A caption that is cut is logged."""
        ids = torch.full((len(captions), TOKENS), self.pad)
        mask = torch.zeros_like(ids)
        for row, caption in enumerate(captions):
            tokens = self.tokenizer.encode(caption.strip()).ids
            if tokens[:1] != [self.bos]:  # Gemma 3's tokenizer.json adds <bos>, Gemma 4's does not
                tokens = [self.bos, *tokens]
            if len(tokens) > TOKENS:
                log.warning(
                    "the caption %r... has %d tokens; only the first %d are read", caption[:60], len(tokens), TOKENS
                )
                tokens = tokens[:TOKENS]
            ids[row, TOKENS - len(tokens) :] = torch.tensor(tokens)
            mask[row, TOKENS - len(tokens) :] = 1
        return ids, mask

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Captions -> features (B,1024,D) fp32 on the encoder's device; every token has a meaning, so no mask."""
        (features,) = self._encode(captions, [self.connectors])
        return features

    @torch.no_grad()
    def encode_both(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions -> features of the video stream (B,1024,D), as `encode`, and of the audio stream (B,1024,D')."""
        assert self.audio_connectors is not None, "the text encoder was opened without connectors of the audio stream"
        video, audio = self._encode(captions, [self.connectors, self.audio_connectors])
        return video, audio

    def _encode(self, captions: list[str], connectors: list[Connectors]) -> list[Tensor]:
        """The features of each of the connectors."""
        batches = [captions[i : i + BATCH] for i in range(0, len(captions), BATCH)]
        features = [self._encode_batch(batch, connectors) for batch in batches]
        return [torch.cat(parts) for parts in zip(*features, strict=True)]

    def _encode_batch(self, captions: list[str], connectors: list[Connectors]) -> list[Tensor]:
        ids, mask = self.tokenize(captions)
        longest = int(mask.sum(dim=1).max())
        ids, mask = (t.to(self.connectors.projection.weight.device) for t in (ids, mask))
        out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states = [state[:, -longest:] for state in out.hidden_states]  # L times (B,t,D), without common padding
        return [connector(states, mask[:, -longest:]).float() for connector in connectors]


def text_fingerprint(folder: Path) -> str:
    """Hash of a text encoder's config and tokenizer, and of the sizes and sampled bytes of its weights."""
    return GemmaFiles.open(folder).fingerprint()


def _language_model(files: GemmaFiles, inputs: int, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """Gemma without vision, audio and output head: built on the meta device, then filled from the files."""
    from accelerate import init_empty_weights  # noqa: PLC0415 (slow)
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415 (slow)

    config_class = type(AutoConfig.for_model(files.config["model_type"]))
    config = config_class.from_dict(files.config).get_text_config()
    width = config.hidden_size * (config.num_hidden_layers + 1)
    if width != inputs:
        raise ConfigError(
            f"model.text_encoder={files.root} gives {config.num_hidden_layers + 1} states of width "
            f"{config.hidden_size}, {width} numbers per token, but the checkpoint's text projection takes {inputs}; "
            "set model.text_encoder to the Gemma that the base was trained with (12B)"
        )
    with init_empty_weights(include_buffers=False):  # buffers such as RoPE's frequencies are computed, not stored
        model: nn.Module = AutoModel.from_config(config, dtype=torch.float32)
    _load_weights(model, files, dtype, device)
    return model


def _load_weights(model: nn.Module, files: GemmaFiles, dtype: torch.dtype, device: torch.device | str) -> None:
    """Move the tensors from disk to device one by one, so that host memory never holds all 24 GB."""
    expected = shapes_of(model.state_dict())
    stored = {name: tensor for name, tensor in files.language_tensors() if name in expected}
    for name, tensor in stored.items():
        if DTYPES.get(tensor.dtype) not in _FLOAT_DTYPES:
            raise ConfigError(f"model.text_encoder={files.root}: {name} is {tensor.dtype}; give bf16 weights")
    check_keys(
        f"model.text_encoder={files.root}",
        "text encoder",
        {name: tensor.shape for name, tensor in stored.items()},
        expected,
        "a file is missing or damaged: fetch it again",
    )
    for name, tensor in stored.items():
        assign_tensor(model, name, tensor.read().to(device).to(dtype))
    model.to(device)  # the computed buffers
