"""The sampler: strengths, masks, guidance, start latents, and the step of both blend conventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iclora_train.config import ConfigError, Flow, Sampling
from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.guidance import Guidance
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.diffusion.noise_schedule import make_sigmas
from iclora_train.diffusion.reference import to_tokens
from iclora_train.diffusion.sampler import (
    SAMPLERS,
    Derivative,
    Reference,
    SamplerSettings,
    draw_noise,
    draw_noises,
    euler,
    sample,
)
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from scripts.synthetic.published import transformer_arguments
from scripts.synthetic_checkpoint import write_checkpoint
from tests.test_transformer import CASES, diffusers_model, diffusers_velocity, inputs_of, relative_error, section_of
from tests.tiny import CHANNELS, TRANSFORMER, WIDTH

SIZE, GEOMETRY, FPS = (2, 2, 4), Geometry(CHANNELS, spatial=8, temporal=4), 25.0
SIGMAS = [1.0, 0.9, 0.6, 0.0]
GENERATOR = torch.Generator().manual_seed(0)
TEXT, NEGATIVE = torch.randn(2, 2, 3, WIDTH, generator=GENERATOR)
LATENT = torch.randn(2, CHANNELS, *SIZE, generator=GENERATOR)
FIRST = torch.randn(2, CHANNELS, 1, *SIZE[1:], generator=GENERATOR)
KEPT_FIRST = KeptLatents.none(2, CHANNELS, SIZE).with_span(FIRST, 0)


def tiny(**changes: object) -> Transformer:
    """A transformer with random weights that are large enough for every input to change the output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Transformer(TransformerConfig.from_metadata(TRANSFORMER | changes))
        for name, parameter in net.named_parameters():
            if name.endswith("table"):
                torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.fixture(scope="module")
def net() -> Transformer:
    return tiny()


class ToyModel:
    """A stand-in for the transformer that records its inputs. A token's velocity depends on that token only."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tokens, Tensor, tuple[int, ...]]] = []

    def __call__(self, tokens: Tokens, text: Tensor, between: str, perturbed: tuple[int, ...] = ()) -> Tensor:
        self.calls.append((tokens, text, perturbed))
        level = tokens.sigma.gather(1, tokens.level)[..., None]
        return torch.tanh(tokens.latent) * (1 + level) + text.mean((1, 2))[:, None, None] + 0.3 * len(perturbed)


def sampled(model: object, *references: Reference, seeds: tuple[int, ...] = (1, 2), **options: object) -> Tensor:
    """Sample with `options` of `SamplerSettings` or of `sample`."""
    arguments: dict = {name: options.pop(name) for name in ("kept", "start", "on_step") if name in options}
    settings = SamplerSettings(**({"sigmas": SIGMAS} | options))  # type: ignore[arg-type]
    text = TEXT[: len(seeds)]
    return sample(model, text, SIZE, GEOMETRY, FPS, settings, seeds, references, **arguments)  # type: ignore[arg-type]


# --- noise, seeds, start ---


def test_a_seed_gives_the_same_noise_in_every_batch() -> None:
    target, other = draw_noises([5, 7], [(2, 3), (4,)])
    assert torch.equal(target[1:], draw_noise([7], (2, 3)))
    assert torch.equal(other[1:], draw_noises([7], [(2, 3), (4,)])[1])
    assert not torch.equal(target[0], target[1])


def test_a_clip_is_the_same_alone_and_in_a_batch(net: Transformer) -> None:
    both = sampled(net, Reference(LATENT), seeds=(1, 2))
    assert torch.equal(both, sampled(net, Reference(LATENT), seeds=(1, 2)))
    assert torch.allclose(both[:1], sampled(net, Reference(LATENT[:1]), seeds=(1,)), atol=1e-5)


def test_a_first_frame_stays_unchanged_and_changes_the_rest(net: Transformer) -> None:
    latent = sampled(net, kept=KEPT_FIRST)
    assert torch.equal(latent[:, :, :1], FIRST)
    assert not torch.equal(sampled(net)[:, :, 1:], latent[:, :, 1:])


def test_cells_outside_a_mask_stay_unchanged_and_have_noise_level_0() -> None:
    toy, mask = ToyModel(), torch.rand(2, *SIZE) < 0.5
    latent = sampled(toy, kept=KeptLatents.none(2, LATENT.shape[1], SIZE).with_cells(LATENT, mask))
    kept = mask[:, None].expand_as(latent)
    assert torch.equal(latent[kept], LATENT[kept])
    assert not torch.isclose(latent[~kept], LATENT[~kept]).any()
    tokens = toy.calls[0][0]
    assert torch.equal(tokens.level == 1, mask.flatten(1))
    assert torch.equal(tokens.loss_mask, ~mask.flatten(1))


def test_start_latents_are_noised_to_the_first_level() -> None:
    toy, sigmas = ToyModel(), [0.9, 0.4, 0.0]
    latent = sampled(toy, Reference(LATENT), start=LATENT, kept=KEPT_FIRST, sigmas=sigmas)
    model_input = toy.calls[0][0].latent
    noised = to_tokens(0.1 * LATENT + 0.9 * draw_noise((1, 2), LATENT.shape[1:]))
    assert torch.allclose(model_input[:, 8:16], noised[:, 8:], atol=1e-6)
    assert torch.equal(model_input[:, :8], to_tokens(FIRST))
    assert torch.equal(model_input[:, 16:], to_tokens(LATENT))
    assert torch.equal(latent[:, :, :1], FIRST)
    with pytest.raises(ValueError, match=r"sigmas begin at 0\.9: give the latents to start from"):
        sampled(toy, sigmas=sigmas)


def test_on_step_counts_steps_and_keyframe_marks_the_first_latent_frame_only() -> None:
    toy, steps = ToyModel(), []
    sampled(toy, Reference(LATENT), Reference(LATENT[:, :, :1], frame=-1), on_step=steps.append)
    assert steps == [0, 1, 2]
    for tokens, _, _ in toy.calls:
        assert tokens.keyframe[0].tolist() == [True] * 8 + [False] * 32
    last_frame = torch.tensor([4.0, 5.0]) / FPS
    assert torch.allclose(toy.calls[0][0].position[0, 0, -8:], last_frame.expand(8, 2))


# --- strength of a reference ---


def euler_by_definition(toy: ToyModel, strength: float, blend: str) -> Tensor:
    """The Euler loop of ComfyUI (KSamplerX0Inpaint) and ltx-pipelines, written on clean latents."""
    noise = torch.cat([to_tokens(n) for n in draw_noises((1, 2), [LATENT.shape[1:]] * 2)], dim=1)
    clean = torch.cat([torch.zeros(2, 16, CHANNELS), to_tokens(LATENT)], dim=1)
    mask = torch.cat([torch.ones(16, 1), torch.full((16, 1), 1 - strength)])
    x = noise if blend == "comfyui" else mask * noise + (1 - mask) * clean
    for sigma, next_sigma in pairwise(SIGMAS):
        model_input = mask * x + (1 - mask) * clean if blend == "comfyui" else x
        velocity = torch.tanh(model_input) * (1 + sigma * mask) + TEXT.mean((1, 2))[:, None, None]
        x0 = model_input - (sigma if blend == "comfyui" else sigma * mask) * velocity
        x0 = mask * x0 + (1 - mask) * clean
        x = x + (x - x0) / sigma * (next_sigma - sigma)
        assert torch.allclose(toy.calls[SIGMAS.index(sigma)][0].latent, model_input, atol=1e-5)
    return x


@pytest.mark.parametrize("blend", ["comfyui", "ltx"])
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.2, 0.0])
def test_the_model_gets_the_latents_of_each_blend_convention(blend: str, strength: float) -> None:
    toy = ToyModel()
    latent = sampled(toy, Reference(LATENT, strength=strength), blend=blend)
    assert torch.allclose(to_tokens(latent), euler_by_definition(toy, strength, blend)[:, :16], atol=1e-5)
    for (tokens, _, _), sigma in zip(toy.calls, SIGMAS, strict=False):
        level = tokens.sigma.gather(1, tokens.level)
        assert torch.allclose(level[:, :16], torch.full((2, 16), sigma))
        assert torch.allclose(level[:, 16:], torch.full((2, 16), sigma * (1 - strength)))


def test_the_blend_conventions_agree_at_0_and_1_only(net: Transformer) -> None:
    for strength, equal in ((1.0, True), (0.5, False), (0.0, True)):
        comfyui, ltx = (sampled(net, Reference(LATENT, strength=strength), blend=blend) for blend in ("comfyui", "ltx"))
        assert torch.equal(comfyui, ltx) is equal
    with pytest.raises(ValueError, match="blend='both' is not one of comfyui, ltx"):
        sampled(net, blend="both")


def test_a_reference_of_strength_0_does_not_depend_on_its_latents(net: Transformer) -> None:
    assert torch.equal(sampled(net, Reference(LATENT, strength=0.0)), sampled(net, Reference(-LATENT, strength=0.0)))


# --- attention strength and masks ---


@pytest.mark.parametrize("between", ["comfyui", "ltx"])
def test_attention_strength_0_makes_the_output_independent_of_the_reference(net: Transformer, between: str) -> None:
    first, second = (sampled(net, Reference(x, attention_strength=0.0), between=between) for x in (LATENT, -3 * LATENT))
    assert torch.equal(first, second)
    assert torch.allclose(first, sampled(net), atol=1e-5)


def test_the_distance_to_strength_1_grows_steadily_as_strength_falls(net: Transformer) -> None:
    full = sampled(net, Reference(LATENT))
    strengths = (1.0, 0.999, 0.8, 0.5, 0.2, 0.0)
    distances = [float((sampled(net, Reference(LATENT, attention_strength=s)) - full).norm()) for s in strengths]
    assert distances == sorted(distances)
    assert distances[1] < 0.01 * distances[-1]
    assert distances[3] < 0.9 * distances[-1]


def test_any_weight_stops_attention_between_references_in_ltx_mode_only(net: Transformer) -> None:
    def with_strength(strength: float, between: str) -> Tensor:
        return sampled(net, *(Reference(x, attention_strength=strength) for x in (LATENT, -LATENT)), between=between)

    full = with_strength(1.0, "comfyui")
    assert torch.equal(full, with_strength(1.0, "ltx"))
    jump, step = (float((with_strength(0.999, between) - full).norm()) for between in ("ltx", "comfyui"))
    assert step < 0.1 * jump


def test_two_references_with_two_half_masks_each_show_their_half() -> None:
    """One block and one step only: in several, masked content spreads among the tokens of a reference."""
    net, left = tiny(num_layers=1), torch.tensor([[1.0, 0.0]])
    right_other = torch.cat([LATENT[..., :2], -LATENT[..., 2:]], dim=-1)
    left_other = torch.cat([-LATENT[..., :2], LATENT[..., 2:]], dim=-1)

    def with_references(one: Tensor, two: Tensor) -> Tensor:
        references = Reference(one, attention_mask=left), Reference(two, attention_mask=1 - left)
        return sampled(net, *references, sigmas=[1.0, 0.0])

    output = with_references(LATENT, LATENT)
    assert torch.equal(output, with_references(right_other, left_other))  # only masked content differs
    assert not torch.allclose(output, with_references(left_other, LATENT), atol=1e-3)
    assert not torch.allclose(output, with_references(LATENT, right_other), atol=1e-3)


# --- guidance ---


def test_without_guidance_a_step_is_one_forward_pass() -> None:
    toy = ToyModel()
    latent = sampled(toy, guidance=Guidance(1.0, NEGATIVE, rescale=0.3))
    assert len(toy.calls) == 3
    assert torch.equal(latent, sampled(ToyModel()))


def test_guidance_passes_share_the_references() -> None:
    toy = ToyModel()
    sampled(toy, Reference(LATENT), guidance=Guidance(3.0, NEGATIVE[:1], stg_scale=1.0, stg_blocks=(1,)))
    assert [perturbed for _, _, perturbed in toy.calls] == [(), (), (1,)] * 3
    for positive, negative, perturbed in zip(*(toy.calls[i::3] for i in range(3)), strict=True):
        assert positive[0] is negative[0] is perturbed[0]
        assert torch.equal(negative[1], NEGATIVE[:1].expand(2, -1, -1))
        assert torch.equal(positive[1], TEXT)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_equals_ltx_core_on_clean_latents(rescale: float) -> None:
    """One step to 0 gives the guided x0 of the target; the standard deviations are over all tokens of a clip."""
    toy = ToyModel()
    guidance = Guidance(3.0, NEGATIVE, stg_scale=1.5, stg_blocks=(0,), rescale=rescale)
    latent = to_tokens(sampled(toy, Reference(LATENT), guidance=guidance, start=LATENT, sigmas=[0.6, 0.0]))
    tokens = toy.calls[0][0]
    level = torch.cat([torch.full((16, 1), 0.6), torch.zeros(16, 1)])
    c, negative, perturbed = (
        tokens.latent - level * ToyModel()(tokens, text, "comfyui", blocks)
        for text, blocks in ((TEXT, ()), (NEGATIVE, ()), (TEXT, (0,)))
    )
    for i in range(2):
        x0 = c[i] + 2.0 * (c[i] - negative[i]) + 1.5 * (c[i] - perturbed[i])
        x0 = x0 * (rescale * c[i].std() / x0.std() + 1 - rescale)
        assert torch.allclose(latent[i], x0[:16], atol=1e-5)


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
@torch.no_grad()
def test_perturbed_blocks_equal_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    file = write_checkpoint(tmp_path, version)
    net = BaseModel.open(str(file)).transformer()
    reference = diffusers_model(file, transformer_arguments(section_of(file)) | {"perturbed_attn": True})
    tokens, text = inputs_of(CASES[0], net)
    monkeypatch.setattr(reference, "forward", partial(reference.forward, spatio_temporal_guidance_blocks=[1]))
    velocity = net(tokens, text, perturbed=(1,))
    assert relative_error(velocity, diffusers_velocity(reference, tokens, text, CASES[0])) < 1e-5
    assert relative_error(net(tokens, text), velocity) > 1e-3


def test_guidance_from_config() -> None:
    settings = Sampling(guidance=3.0, stg_scale=1.0, stg_blocks=[1], rescale=0.7)
    assert Guidance.from_config(settings, NEGATIVE, num_blocks=2) == Guidance(3.0, NEGATIVE, 1.0, (1,), 0.7)
    assert Guidance.from_config(Sampling(), None, num_blocks=2).stg_scale == 0  # the default blocks do not matter
    with pytest.raises(ConfigError, match=r"sample\.stg_blocks=\[29\]: the base has the blocks 0 to 1"):
        Guidance.from_config(Sampling(stg_scale=1.0), None, num_blocks=2)
    with pytest.raises(ValueError, match=r"guidance of scale 3\.0 needs a negative text"):
        Guidance(3.0)


def test_sampler_settings_from_config() -> None:
    config = Sampling(steps=3, guidance=3.0)
    settings = SamplerSettings.from_config(config, Flow(), SIZE, 2, NEGATIVE, blend="ltx")
    assert settings.sigmas == make_sigmas(config, Flow(), 16)
    assert settings.guidance == Guidance(3.0, NEGATIVE, stg_blocks=(29,))
    assert (settings.sampler, settings.between, settings.blend) == ("euler", "comfyui", "ltx")
    with pytest.raises(ConfigError, match=r"sample\.sampler='heun' is not one of euler"):
        SamplerSettings.from_config(Sampling(sampler="heun"), Flow(), SIZE, 2, None)


def test_a_sampler_of_the_table_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_half_steps(derivative: Derivative, x: Tensor, sigmas: Sequence[float], on_step: Callable) -> Tensor:
        levels = [level for a, b in pairwise(sigmas) for level in (a, (a + b) / 2)] + [sigmas[-1]]
        return euler(derivative, x, levels, on_step)

    monkeypatch.setitem(SAMPLERS, "half", two_half_steps)
    model = ToyModel()
    sampled(model, sampler="half")
    assert len(model.calls) == 2 * (len(SIGMAS) - 1)
