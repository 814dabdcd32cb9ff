"""The text connectors: Gemma's hidden states -> the tokens that the text attention of a stream reads.

The states of all layers of a token are normalised and projected together. A small transformer then mixes the tokens of
a caption with learned registers, which replace the padding. All TOKENS tokens of the result have a meaning, so that
the cross-attention needs no mask. The transformer is diffusers' class.

The video stream and the audio stream have a connector each, and since 2.3 a projection each (`side`: video or audio).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.config import ConfigError
from iclora_train.ltx2.weights.assign import Shapes, assign_tensor, check_keys, shapes_of

TOKENS = 1024  # tokens of a caption in all published pipelines
_REMEDY = "the file is incomplete or of another version: check model.checkpoint and model.connectors"
VIDEO, AUDIO = "video", "audio"  # the sides
_OTHER = {VIDEO: AUDIO, AUDIO: VIDEO}
_UNSUPPORTED = "caption_projection_first_linear", "caption_proj_input_norm", "caption_projection_second_linear"


@dataclass(frozen=True)
class ConnectorConfig:
    """Sizes of the connector of one side. per_token: normalise each token and layer by itself, as since 2.3."""

    heads: int
    head_dim: int
    layers: int
    registers: int
    max_position: int
    rope_type: str
    double_precision: bool
    gated: bool
    per_token: bool
    theta: float = 10000.0

    @classmethod
    def from_official(cls, config: dict[str, Any], registers: int, side: str = VIDEO) -> ConnectorConfig:
        """From the checkpoint's config, with the defaults of ltx-core's configurators."""
        if "transformer" not in config:
            raise ConfigError(
                "the checkpoint's config has no section `transformer`, which gives the sizes of the text connectors; "
                "model.checkpoint must be an LTX-2 file"
            )
        section = config["transformer"]
        for key in _UNSUPPORTED:
            if section.get(key):
                raise ConfigError(
                    f"the checkpoint's config has transformer.{key}=true: this text projection is not supported"
                )
        sizes = {"num_attention_heads": 30, "attention_head_dim": 128, "num_layers": 2}
        sizes = {key: section.get(f"connector_{key}", size) for key, size in sizes.items()}
        if side == AUDIO:  # where the config has no sizes of the audio side, they are those of the video side
            sizes = {key: section.get(f"audio_connector_{key}", size) for key, size in sizes.items()}
        return cls(
            heads=sizes["num_attention_heads"],
            head_dim=sizes["attention_head_dim"],
            layers=sizes["num_layers"],
            registers=registers,
            max_position=section.get("connector_positional_embedding_max_pos", [1])[0],
            rope_type=section.get("rope_type", "split"),
            double_precision=section.get("frequencies_precision") == "float64",
            gated=section.get("connector_apply_gated_attention", False),
            per_token=section.get("caption_proj_before_connector", False),
        )

    @classmethod
    def from_diffusers(cls, config: dict[str, Any], side: str = VIDEO) -> ConnectorConfig:
        """From connectors/config.json, with the defaults of diffusers' LTX2TextConnectors."""
        registers = config.get(f"{side}_connector_num_learnable_registers", 128)
        if not registers:
            raise ConfigError(
                f"the connectors' config has no {side}_connector_num_learnable_registers: every published LTX-2 has 128"
            )
        return cls(
            heads=config.get(f"{side}_connector_num_attention_heads", 30),
            head_dim=config.get(f"{side}_connector_attention_head_dim", 128),
            layers=config.get(f"{side}_connector_num_layers", 2),
            registers=registers,
            max_position=config.get("connector_rope_base_seq_len", 4096),
            rope_type=config.get("rope_type", "interleaved"),
            double_precision=config.get("rope_double_precision", True),
            gated=config.get(f"{side}_gated_attn", False),
            per_token=config.get("per_modality_projections", False),
            theta=config.get("rope_theta", 10000.0),
        )


class Connectors(nn.Module):
    """Projection and connector of one side, frozen: L hidden states (B,t,D) and a mask (B,t) -> (B,TOKENS,C)."""

    def __init__(self, config: ConnectorConfig, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d  # noqa: PLC0415 (slow)

        assert TOKENS % config.registers == 0, f"{config.registers} registers do not fill {TOKENS} positions"
        self.config = config
        self.projection = nn.Linear(inputs, outputs, bias=bias)
        self.connector = LTX2ConnectorTransformer1d(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            num_layers=config.layers,
            num_learnable_registers=config.registers,
            rope_base_seq_len=config.max_position,
            rope_theta=config.theta,
            rope_double_precision=config.double_precision,
            rope_type=config.rope_type,
            gated_attention=config.gated,
        )

    @classmethod
    def from_official(
        cls,
        config: dict[str, Any],
        state: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        source: str = "state_dict",
        side: str = VIDEO,
        beside: Connectors | None = None,
    ) -> Connectors:
        """From a checkpoint's config and its tensors under official names, without `model.diffusion_model.`.

        `state` may be lazy and may hold other tensors: only the connector and the projection of the side are read, one
        tensor at a time, to `device` in `dtype` (None: as stored). source: the file, for messages.
        beside: the other side, whose projection is used if the version has one for both.
        """
        registers = _shape(shapes_of(state), f"{side}_embeddings_connector.learnable_registers")[0]
        settings = ConnectorConfig.from_official(config, registers, side)
        kind = f"{side}_aggregate_embed" if settings.per_token else "aggregate_embed"
        own, other = f"{side}_embeddings_connector.", _OTHER[side]
        keys = [
            key
            for key in state
            if key.startswith((own, "text_embedding_projection."))
            and not key.startswith(f"text_embedding_projection.{other}_")
        ]
        rename = partial(_official_name, projection=kind, side=side)
        return cls._build(settings, state, keys, rename, dtype, device, source, beside)

    @classmethod
    def from_diffusers(
        cls,
        config: dict[str, Any],
        state: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        source: str = "state_dict",
        side: str = VIDEO,
        beside: Connectors | None = None,
    ) -> Connectors:
        """From connectors/config.json and its tensors; the other side is ignored. Arguments as in `from_official`."""
        settings = ConnectorConfig.from_diffusers(config, side)
        kind, other = f"{side}_text_proj_in" if settings.per_token else "text_proj_in", _OTHER[side]
        keys = [key for key in state if not key.startswith((f"{other}_connector.", f"{other}_text_proj_in."))]
        rename = partial(_diffusers_name, projection=kind, side=side)
        return cls._build(settings, state, keys, rename, dtype, device, source, beside)

    @classmethod
    def _build(
        cls,
        settings: ConnectorConfig,
        state: Mapping[str, Tensor],
        keys: list[str],
        rename: Callable[[str], str],
        dtype: torch.dtype | None,
        device: torch.device | str,
        source: str,
        beside: Connectors | None,
    ) -> Connectors:
        """Build the module from the tensors of `keys`. rename: name in the module -> key in `state`."""
        shapes = shapes_of(state)
        outputs, inputs = _shape(shapes, rename("projection.weight"))
        with torch.device("meta"):
            module = cls(settings, inputs, outputs, bias=rename("projection.bias") in state)
        expected = {rename(name): shape for name, shape in shapes_of(module.state_dict()).items()}
        check_keys(source, "text connector", {key: shapes[key] for key in keys}, expected, _REMEDY)
        names = list(module.state_dict())
        if beside is not None and not settings.per_token:
            names = [name for name in names if not name.startswith("projection.")]
            module.projection = beside.projection
        for name in names:
            tensor = state[rename(name)].to(device)
            assign_tensor(module, name, tensor if dtype is None else tensor.to(dtype))
        return module.requires_grad_(False).eval()

    @property
    def inputs(self) -> int:
        """Input width of the projection: layers times width of the hidden states."""
        return self.projection.in_features

    def forward(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Hidden states of all layers, L times (B,t,D), padded on the left where `mask` (B,t) is 0 -> (B,TOKENS,C)."""
        tokens = self.projection(self._features(torch.stack(list(states), dim=-1), mask))  # (B,t,C)
        padding = TOKENS - tokens.shape[1]
        tokens = nn.functional.pad(tokens, (0, 0, padding, 0))
        mask = nn.functional.pad(mask, (padding, 0)).to(tokens.dtype)
        bias = (mask - 1)[:, None, None] * torch.finfo(tokens.dtype).max  # (B,1,1,TOKENS): 0 or the lowest number
        out: Tensor = self.connector(tokens, bias)[0]
        return out

    def _features(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B,t,D,L) -> normalised (B,t,D*L), zero at padding."""
        from diffusers.pipelines.ltx2 import connectors  # noqa: PLC0415 (slow)

        if not self.config.per_token:
            lengths = mask.sum(dim=-1)
            normed: Tensor = connectors.per_layer_masked_mean_norm(states, lengths, states.device, padding_side="left")
            return normed
        scale = math.sqrt(self.projection.out_features / states.shape[2])
        features = connectors.per_token_rms_norm(states).flatten(2)
        return torch.where(mask.bool()[..., None], features, 0) * scale


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise ConfigError(
            f"the text connectors lack {key}: give model.checkpoint a complete file, or name the missing file in "
            "model.connectors (LTX-2.5's text projection lies in its packed text encoder, model.text_encoder)"
        )
    return shapes[key]


def _official_name(name: str, projection: str, side: str) -> str:
    """Name in `Connectors` -> official key (the table is in diffusers' convert_ltx2_to_diffusers.py)."""
    name = name.replace("projection.", f"text_embedding_projection.{projection}.", 1)
    name = name.replace("connector.", f"{side}_embeddings_connector.", 1)
    for module, key in (("transformer_blocks", "transformer_1d_blocks"), ("norm_q", "q_norm"), ("norm_k", "k_norm")):
        name = name.replace(f".{module}.", f".{key}.")
    return name


def _diffusers_name(name: str, projection: str, side: str) -> str:
    """Name in `Connectors` -> diffusers' key."""
    return name.replace("projection.", f"{projection}.", 1).replace("connector.", f"{side}_connector.", 1)
