"""The transformer equals diffusers' model for every version, and its inputs have an effect on its output."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.reference import append_reference, target_tokens
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX
from scripts.synthetic.configs import VERSIONS
from scripts.synthetic.published import TRANSFORMER, renamed, transformer_arguments
from scripts.synthetic_checkpoint import write_checkpoint

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


def scene(fps: float = 25.0) -> tuple[Tokens, Tensor]:
    """Two clips with references, the first with a clean first frame; and text."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 8, 2, 4, 4, generator=generator)
    clean = torch.tensor([[True, False], [False, False]])[:, :, None, None]
    tokens = target_tokens(noisy, torch.tensor([0.3, 0.9]), LTX, fps, clean)
    reference = torch.randn(2, 8, 2, 4, 4, generator=generator)
    return append_reference(tokens, reference), torch.randn(2, TEXT, WIDTH, generator=generator)


@pytest.fixture(scope="module", params=VERSIONS)
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each version in one official file."""
    return write_checkpoint(tmp_path_factory.mktemp(f"ltx-{request.param}"), request.param)


def section_of(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        section: dict[str, Any] = json.loads(opened.metadata()["config"])["transformer"]
    return section


def diffusers_model(file: Path, arguments: dict[str, Any] | None = None) -> LTX2VideoTransformer3DModel:
    """diffusers' model in fp32 with the weights of an official file, keys converted as published."""
    weights = load_file(file)
    state = {}
    for key, tensor in weights.items():
        if key.startswith(MODEL_PREFIX) and "embeddings_connector" not in key and not key.endswith("_scale"):
            scale = weights.get(f"{key}_scale", torch.ones(()))
            state[renamed(key.removeprefix(MODEL_PREFIX), TRANSFORMER)] = tensor.float() * scale
    model = LTX2VideoTransformer3DModel(**(arguments or transformer_arguments(section_of(file))))
    model.load_state_dict(state)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """Latent size of the target, factor by which the reference is smaller, frame rate."""

    size: tuple[int, int, int] = (2, 4, 4)
    downscale: int = 1
    fps: float = 25.0


CASES = (Case(), Case((1, 4, 8), 2, 24.0), Case((3, 8, 4), 4, 30.0))


def inputs_of(case: Case, net: Transformer) -> tuple[Tokens, Tensor]:
    """Two clips at different noise levels, one with a clean first frame, each with a clean reference; and text."""
    generator = torch.Generator().manual_seed(1)
    channels, (f, h, w) = net.config.in_channels, case.size
    geometry = Geometry(channels, spatial=32, temporal=8)
    noisy = torch.randn(2, channels, f, h, w, generator=generator)
    reference = torch.randn(2, channels, f, h // case.downscale, w // case.downscale, generator=generator)
    clean = torch.zeros(2, f, 1, 1, dtype=torch.bool)
    clean[0, 0] = True
    tokens = target_tokens(noisy, torch.tensor([0.3, 0.9]), geometry, case.fps, clean)
    width = net.config.caption_channels if net.caption_projection else net.config.cross_attention_dim
    return append_reference(tokens, reference, case.downscale), torch.randn(2, TEXT, width, generator=generator)


def diffusers_velocity(reference: LTX2VideoTransformer3DModel, tokens: Tokens, text: Tensor, case: Case) -> Tensor:
    """diffusers' video velocity with isolated modalities, at the positions that its pipelines compute."""
    level = tokens.sigma.gather(1, tokens.level) * 1000
    f, h, w = case.size
    sizes = ((f, h, w), (f, h // case.downscale, w // case.downscale))
    target, small = (reference.rope.prepare_video_coords(2, *size, torch.device("cpu"), fps=case.fps) for size in sizes)
    small[:, 1:] *= case.downscale
    audio = reference.config.audio_in_channels
    velocity: Tensor = reference(
        hidden_states=tokens.latent,
        audio_hidden_states=torch.zeros(2, 1, audio),
        encoder_hidden_states=text,
        audio_encoder_hidden_states=text[..., : reference.config.audio_cross_attention_dim]
        if not reference.config.use_prompt_embeddings
        else text,
        timestep=level,
        audio_timestep=level[:, :1],
        sigma=tokens.sigma[:, 0] * 1000,
        audio_sigma=tokens.sigma[:, 0] * 1000,
        video_coords=torch.cat([target, small], dim=2),
        audio_coords=torch.zeros(2, 1, 1, 2),
        video_keyframes_mask=tokens.keyframe[..., None].float(),
        isolate_modalities=True,
        return_dict=False,
    )[0]
    return velocity


def relative_error(velocity: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected velocity."""
    return float((velocity - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_the_transformer_equals_the_published_model(official: Path, case: Case) -> None:
    net, reference = BaseModel.open(str(official)).transformer(), diffusers_model(official)
    tokens, text = inputs_of(case, net)
    expected = diffusers_velocity(reference, tokens, text, case)
    velocity = net(tokens, text)
    assert relative_error(velocity, expected) < 1e-5
    assert torch.allclose(velocity, expected, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_a_transformer_with_an_adapter_equals_the_published_model_with_the_adapter_fused(
    official: Path, tmp_path: Path
) -> None:
    net, reference = BaseModel.open(str(official)).transformer(), diffusers_model(official)
    tokens, text = inputs_of(Case(), net)
    bare = net(tokens, text)
    lora.attach(net, Lora(rank=4))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in net.named_parameters():
        if ".lora_B" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapter = lora.Adapter(lora.adapter_weights(net), {"reference_downscale_factor": "1"})
    lora.save(tmp_path / "a.safetensors", adapter)
    reference.load_lora_adapter(LTX2Pipeline.lora_state_dict(str(tmp_path / "a.safetensors")), prefix="transformer")
    reference.fuse_lora()
    expected = diffusers_velocity(reference, tokens, text, Case())
    velocity = net(tokens, text)
    assert relative_error(velocity, expected) < 1e-5
    assert relative_error(bare, expected) > 1e-2


@torch.no_grad()
def test_a_diffusers_folder_gives_the_same_model(official: Path, tmp_path: Path) -> None:
    base = BaseModel.open(str(official))
    write_checkpoint(tmp_path, base.version, "diffusers")
    opened = BaseModel.open(str(tmp_path))
    assert (opened.version, opened.family, opened.geometry) == (base.version, base.family, base.geometry)
    reference = LTX2VideoTransformer3DModel.from_pretrained(tmp_path / "transformer").eval()
    net = opened.transformer()
    tokens, text = inputs_of(CASES[1], net)
    assert relative_error(net(tokens, text), diffusers_velocity(reference, tokens, text, CASES[1])) < 1e-5
    assert torch.equal(net(tokens, text), base.transformer()(tokens, text))


@torch.no_grad()
def test_fp8_weights_are_multiplied_by_their_scales(official: Path, tmp_path: Path) -> None:
    base = BaseModel.open(str(official))
    file = write_checkpoint(tmp_path, base.version, fp8=True)
    net = BaseModel.open(str(file)).transformer()
    tokens, text = inputs_of(Case(), net)
    velocity = net(tokens, text)
    assert relative_error(velocity, diffusers_velocity(diffusers_model(file), tokens, text, Case())) < 1e-5
    assert 1e-4 < relative_error(velocity, base.transformer()(tokens, text)) < 0.1  # the error is fp8 rounding


def model() -> Transformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Transformer(CONFIG).eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


@torch.no_grad()
def test_weight_zero_equals_no_reference_and_effects_grow_with_the_weight() -> None:
    net = model()
    tokens, text = scene()
    count = 32
    target_only = replace(
        tokens,
        latent=tokens.latent[:, :count],
        level=tokens.level[:, :count],
        position=tokens.position[:, :, :count],
        group=tokens.group[:count],
        loss_mask=tokens.loss_mask[:, :count],
        keyframe=tokens.keyframe[:, :count],
    )
    without_reference = net(target_only, text)

    def weighted(w: float) -> Tensor:
        weight = torch.where(tokens.group > 0, w, 1.0).expand(2, -1)
        return net(replace(tokens, weight=weight), text)[:, :count]

    assert torch.allclose(weighted(0.0), without_reference, atol=1e-6)
    assert torch.allclose(weighted(1.0), net(tokens, text)[:, :count], atol=1e-6)
    effects = [float((weighted(w) - without_reference).norm()) for w in (0.0, 0.1, 0.5, 1.0)]
    assert effects == sorted(effects)
    assert effects[1] > 10 * effects[0]


@torch.no_grad()
def test_each_token_is_modulated_by_its_noise_level() -> None:
    net = model()
    tokens, text = scene()
    sigma = torch.cat([tokens.sigma, torch.rand(2, 1)], dim=1)  # no token has the added noise level
    with_unused_level = replace(tokens, sigma=sigma)
    assert torch.allclose(net(tokens, text), net(with_unused_level, text), atol=1e-6)
    with_other_level = replace(with_unused_level, level=torch.where(tokens.group > 0, 2, tokens.level))
    assert not torch.allclose(net(tokens, text), net(with_other_level, text), atol=1e-3)


@torch.no_grad()
def test_position_text_and_keyframe_change_the_output() -> None:
    tokens, text = scene()
    net = model()
    base = net(tokens, text)
    assert not torch.allclose(base, net(tokens, text.flip(0)), atol=1e-3)
    assert not torch.allclose(base, net(scene(fps=5.0)[0], text), atol=1e-3)
    assert torch.equal(base, net(replace(tokens, keyframe=~tokens.keyframe), text))
    with_keyframe_embedding = Transformer(replace(CONFIG, use_keyframes_abs_pos_embedding=True, ff_bias=False)).eval()
    for parameter in with_keyframe_embedding.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    outputs = [with_keyframe_embedding(replace(tokens, keyframe=k), text) for k in (tokens.keyframe, ~tokens.keyframe)]
    assert not torch.allclose(*outputs, atol=1e-3)


def test_version_switches_change_the_parameters() -> None:
    names = set(Transformer(CONFIG).state_dict())
    first_config = TransformerConfig.from_metadata(
        {"num_attention_heads": HEADS, "attention_head_dim": 24, "num_layers": 1, "cross_attention_dim": WIDTH}
    )
    first_version = Transformer(first_config)
    assert "transformer_blocks.0.attn1.to_gate_logits.weight" in names
    assert "transformer_blocks.0.prompt_scale_shift_table" in names
    assert not any("to_gate_logits" in name or "prompt" in name for name in first_version.state_dict())
    assert "caption_projection.linear_1.weight" in first_version.state_dict()
    assert first_version.transformer_blocks[0].scale_shift_table.shape == (6, WIDTH)
    with pytest.raises(ValueError, match="rope_type='interleaved' is not supported"):
        TransformerConfig.from_metadata({"rope_type": "interleaved"})
