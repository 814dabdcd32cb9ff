"""The transformer: equal to diffusers' LTX-2.3 on the same weights; levels, weights and texts do what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from iclora_train.ltx2.attention import AttentionBias, attend
from iclora_train.ltx2.transformer import Transformer, TransformerConfig
from iclora_train.pair import Geometry, Tokens
from iclora_train.reference import append_reference, target_tokens

LTX = Geometry(channels=8, spatial=32, temporal=8)
HEADS, WIDTH, TEXT = 2, 48, 5
CONFIG = TransformerConfig(
    num_attention_heads=HEADS,
    attention_head_dim=WIDTH // HEADS,
    in_channels=8,
    out_channels=8,
    num_layers=2,
    cross_attention_dim=WIDTH,
    apply_gated_attention=True,
    cross_attention_adaln=True,
    caption_proj_before_connector=True,
)
RENAMED = (("time_embed", "adaln_single"), ("proj_in", "patchify_proj"), ("prompt_adaln", "prompt_adaln_single"))
RENAMED += (("norm_q", "q_norm"), ("norm_k", "k_norm"))


def theirs() -> LTX2VideoTransformer3DModel:
    """diffusers' class at our sizes, with random weights everywhere."""
    torch.manual_seed(0)
    audio = {f"audio_{k}": v for k, v in {"in_channels": 8, "out_channels": 8, "num_attention_heads": HEADS}.items()}
    model = LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        cross_attention_dim=WIDTH,
        num_layers=2,
        gated_attn=True,
        cross_attn_mod=True,
        audio_attention_head_dim=WIDTH // HEADS,
        audio_cross_attention_dim=WIDTH,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        rope_type="split",
        use_prompt_embeddings=False,
        perturbed_attn=True,
        vae_scale_factors=(8, 32, 32),
        **audio,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def ours(state: dict[str, Tensor]) -> Transformer:
    """Our class with the video stream of diffusers' weights under the official names."""
    model = Transformer(CONFIG).eval()
    weights = {}
    for key, tensor in state.items():
        name = ".".join(next((new for old, new in RENAMED if part == old), part) for part in key.split("."))
        if name in model.state_dict():
            weights[name] = tensor
    model.load_state_dict(weights)
    return model


def scene(fps: float = 25.0, downscale: int = 1) -> tuple[Tokens, Tensor]:
    """Two clips with a given first frame in one and a reference, and text."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 8, 2, 4, 4, generator=generator)
    sigma, given = torch.tensor([0.3, 0.9]), torch.tensor([True, False])
    tokens = target_tokens(noisy, sigma, LTX, fps, given)
    small = torch.randn(2, 8, 2, 4 // downscale, 4 // downscale, generator=generator)
    return append_reference(tokens, small, downscale), torch.randn(2, TEXT, WIDTH, generator=generator)


@pytest.mark.parametrize("downscale", [1, 2])
@torch.no_grad()
def test_it_is_the_published_model(downscale: int) -> None:
    reference = theirs()
    tokens, text = scene(downscale=downscale)
    level = tokens.sigma.gather(1, tokens.level) * 1000
    wanted = reference(
        hidden_states=tokens.latent,
        audio_hidden_states=torch.zeros(2, 1, 8),
        encoder_hidden_states=text,
        audio_encoder_hidden_states=text,
        timestep=level,
        audio_timestep=level[:, :1],
        sigma=tokens.sigma[:, 0] * 1000,
        audio_sigma=tokens.sigma[:, 0] * 1000,
        video_coords=tokens.position,
        audio_coords=torch.zeros(2, 1, 1, 2),
        isolate_modalities=True,
        return_dict=False,
    )[0]
    predicted = ours(reference.state_dict())(tokens, text)
    assert float((predicted - wanted).norm() / wanted.norm()) < 1e-5


def model() -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Transformer(CONFIG).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return made


@torch.no_grad()
def test_weight_zero_is_no_reference_and_weights_act_monotonically() -> None:
    net = model()
    tokens, text = scene()
    n = 32
    alone = replace(
        tokens,
        latent=tokens.latent[:, :n],
        level=tokens.level[:, :n],
        position=tokens.position[:, :, :n],
        group=tokens.group[:n],
        loss_mask=tokens.loss_mask[:, :n],
        keyframe=tokens.keyframe[:, :n],
    )
    without = net(alone, text)

    def weighted(w: float) -> Tensor:
        weight = torch.where(tokens.group > 0, w, 1.0).expand(2, -1)
        return net(replace(tokens, weight=weight), text)[:, :n]

    assert torch.allclose(weighted(0.0), without, atol=1e-6)
    assert torch.allclose(weighted(1.0), net(tokens, text)[:, :n], atol=1e-6)
    change = [float((weighted(w) - without).norm()) for w in (0.0, 0.1, 0.5, 1.0)]
    assert change == sorted(change)
    assert change[1] > 10 * change[0]


def dense(weight: Tensor, group: Tensor, between: str) -> Tensor:
    """The attention bias (B,N,N) as one would write it down."""
    batch, n = weight.shape
    bias = torch.zeros(batch, n, n)
    for b in range(batch):
        for i in range(n):
            for j in range(n):
                if (group[i] == 0) != (group[j] == 0):
                    w = float(weight[b, j] if group[j] > 0 else weight[b, i])
                    bias[b, i, j] = math.log(w) if w > 0 else -math.inf
                elif between == "ltx" and group[i] != group[j]:
                    bias[b, i, j] = -math.inf
    return bias


@pytest.mark.parametrize("between", ["comfyui", "ltx"])
def test_attention_weights_equal_a_dense_bias(between: str) -> None:
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([0] * 4 + [1] * 3 + [2] * 3)
    weight = torch.tensor([[1.0] * 4 + [0.5, 0.0, 1.0, 0.1, 0.9, 0.0], [1.0] * 4 + [1.0, 1.0, 0.2, 0.3, 0.0, 1.0]])
    q, k, v = torch.randn(3, 2, HEADS, 10, 16, generator=generator).unbind(0)
    found = attend(q, k, v, AttentionBias(weight, group, between))
    logits = q @ k.transpose(-1, -2) / 4 + dense(weight, group, between)[:, None]
    assert torch.allclose(found, logits.softmax(-1) @ v, atol=1e-5)


def test_an_unknown_mode_between_references_is_refused() -> None:
    with pytest.raises(ValueError, match="between='none' is not one of comfyui, ltx"):
        AttentionBias(torch.ones(1, 2), torch.tensor([0, 1]), "none")


@torch.no_grad()
def test_a_token_is_modulated_by_its_own_level() -> None:
    net = model()
    tokens, text = scene()
    more = replace(tokens, sigma=torch.cat([tokens.sigma, torch.rand(2, 1)], dim=1))  # a level that no token has
    assert torch.allclose(net(tokens, text), net(more, text), atol=1e-6)
    other = replace(more, level=torch.where(tokens.group > 0, 2, tokens.level))
    assert not torch.allclose(net(tokens, text), net(other, text), atol=1e-3)


@torch.no_grad()
def test_position_text_and_keyframe_matter() -> None:
    tokens, text = scene()
    net = model()
    base = net(tokens, text)
    assert not torch.allclose(base, net(tokens, text.flip(0)), atol=1e-3)
    assert not torch.allclose(base, net(scene(fps=5.0)[0], text), atol=1e-3)
    assert torch.equal(base, net(replace(tokens, keyframe=~tokens.keyframe), text))
    marked = Transformer(replace(CONFIG, use_keyframes_abs_pos_embedding=True, ff_bias=False)).eval()
    for parameter in marked.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(marked(tokens, text), marked(replace(tokens, keyframe=~tokens.keyframe), text), atol=1e-3)


def test_version_switches_change_the_parameters() -> None:
    names = set(Transformer(CONFIG).state_dict())
    first = TransformerConfig.from_metadata(
        {"num_attention_heads": HEADS, "attention_head_dim": 24, "num_layers": 1, "cross_attention_dim": WIDTH}
    )
    old = Transformer(first)
    assert "transformer_blocks.0.attn1.to_gate_logits.weight" in names
    assert "transformer_blocks.0.prompt_scale_shift_table" in names
    assert not any("to_gate_logits" in name or "prompt" in name for name in old.state_dict())
    assert "caption_projection.linear_1.weight" in old.state_dict()
    assert old.transformer_blocks[0].scale_shift_table.shape == (6, WIDTH)
    with pytest.raises(ValueError, match="rope_type='interleaved' is not supported"):
        TransformerConfig.from_metadata({"rope_type": "interleaved"})
