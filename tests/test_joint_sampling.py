"""Video and sound sampled together equal diffusers' pipeline; sound that is given stays; a seed's video noise too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from torch import Tensor

from iclora_train.config import ConfigError, Sampling
from iclora_train.diffusion.guidance import AudioGuidance, Guidance
from iclora_train.diffusion.joint_sampler import AudioStream, sample_with_sound
from iclora_train.diffusion.noise_schedule import dev_schedule
from iclora_train.diffusion.sampler import Reference, SamplerSettings, draw_noise, sample
from iclora_train.ltx2.audio.codec import audio_geometry
from iclora_train.ltx2.base_model import BaseModel
from scripts.synthetic.configs import VERSIONS
from scripts.synthetic_checkpoint import write_checkpoint
from tests.test_transformer import relative_error

SIZE, FRAMES, FPS, STEPS, SEED = (2, 2, 3), 9, 25.0, 4, 5
SCHEDULER = {  # of the published folders
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
SCALES = Sampling(guidance=3.0, stg_scale=1.0, stg_blocks=[1], rescale=0.7)


@pytest.fixture(scope="module", params=VERSIONS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each version with diffusers' names."""
    return write_checkpoint(tmp_path_factory.mktemp(f"ltx-{request.param}"), request.param, "diffusers")


class Setup:
    """A base, and random text features of both streams, shared by the tests of one version."""

    def __init__(self, folder: Path) -> None:
        self.base = BaseModel.open(str(folder))
        self.net = self.base.transformer(audio=True)
        self.audio = audio_geometry(self.base.checkpoint)
        self.l = self.audio.latent_frames(FRAMES, FPS)
        generator = torch.Generator().manual_seed(1)
        widths = self.net.config.text_width, self.net.config.audio_text_width
        self.text, self.sound_text = (torch.randn(1, 6, width, generator=generator) for width in widths)
        self.negative, self.sound_negative = (torch.randn(1, 6, width, generator=generator) for width in widths)

    def settings(self, scales: Sampling) -> SamplerSettings:
        guidance = Guidance.from_config(scales, self.negative, self.net.config.num_layers)
        audio = AudioGuidance.from_config(scales, self.sound_negative)
        return SamplerSettings(dev_schedule(STEPS, 12), guidance, audio=audio)

    def sample(self, scales: Sampling, *references: Reference, **options: Any) -> tuple[Tensor, Tensor]:
        settings = options.pop("settings", None) or self.settings(scales)
        start = options.pop("video_start", None)
        audio = AudioStream(self.audio, self.l, self.sound_text, **options)
        return sample_with_sound(
            self.net, self.text, SIZE, self.base.geometry, FPS, settings, [SEED], audio, references, start=start
        )


@pytest.fixture(scope="module")
def setup(folder: Path) -> Setup:
    return Setup(folder)


class GivenFeatures(torch.nn.Module):
    """Stands for the connectors of the pipeline: returns the same features as this project's sampler gets."""

    def __init__(self, setup: Setup, connectors: LTX2TextConnectors) -> None:
        super().__init__()
        self.config, self.device, self.dtype = connectors.config, torch.device("cpu"), torch.float32
        self.features = [(setup.negative, setup.sound_negative), (setup.text, setup.sound_text)]

    def forward(self, prompt: Tensor, mask: Tensor, padding_side: str) -> tuple[Tensor, Tensor, Tensor]:
        video, sound = (torch.cat(parts) for parts in zip(*self.features[-len(prompt) :], strict=True))
        return video, sound, torch.ones(video.shape[:2])


@torch.no_grad()
def by_diffusers(folder: Path, setup: Setup, scales: Sampling) -> tuple[Tensor, Tensor]:
    """Normalised latents of both streams by LTX2Pipeline, from the same seed and text features."""
    vae = AutoencoderKLLTX2Video.from_pretrained(folder, subfolder="vae")
    audio_vae = AutoencoderKLLTX2Audio.from_pretrained(folder, subfolder="audio_vae")
    transformer = LTX2VideoTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    connectors = LTX2TextConnectors.from_pretrained(folder, subfolder="connectors")
    if setup.net.keyframes_abs_pos_embedding is not None:  # the pipeline never passes the mask of 2.5's embedding
        setup.net.keyframes_abs_pos_embedding.zero_()
    pipeline = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae.float(),
        audio_vae=audio_vae.float(),
        text_encoder=None,
        tokenizer=None,
        connectors=GivenFeatures(setup, connectors),
        transformer=transformer.float().eval(),
        vocoder=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    _, h, w = SIZE
    own = scales.audio_scales
    video, sound = pipeline(
        prompt_embeds=torch.zeros(1, 6, 1),
        negative_prompt_embeds=torch.zeros(1, 6, 1),
        prompt_attention_mask=torch.ones(1, 6),
        negative_prompt_attention_mask=torch.ones(1, 6),
        num_frames=FRAMES,
        height=h * pipeline.vae_spatial_compression_ratio,
        width=w * pipeline.vae_spatial_compression_ratio,
        frame_rate=FPS,
        num_inference_steps=STEPS,
        guidance_scale=scales.guidance,
        stg_scale=scales.stg_scale,
        guidance_rescale=scales.rescale,
        modality_scale=own.video_modality,
        audio_guidance_scale=own.guidance,
        audio_stg_scale=own.stg_scale,
        audio_guidance_rescale=own.rescale,
        audio_modality_scale=own.sound_modality,
        spatio_temporal_guidance_blocks=scales.stg_blocks,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        return_dict=False,
    )
    video = LTX2Pipeline._normalize_latents(video, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    packed = LTX2Pipeline._pack_audio_latents(sound)
    packed = LTX2Pipeline._normalize_audio_latents(packed, audio_vae.latents_mean, audio_vae.latents_std)
    return video, LTX2Pipeline._unpack_audio_latents(packed, setup.l, setup.audio.bins)


@pytest.mark.parametrize("guided", [False, True])
def test_a_whole_sampling_equals_the_pipeline_of_diffusers(folder: Path, setup: Setup, guided: bool) -> None:
    scales = SCALES if guided else Sampling()
    if guided and setup.base.version == "2.0":  # diffusers has no STG for 2.0
        scales = replace(SCALES, stg_scale=0.0)
    expected = by_diffusers(folder, setup, scales)
    for latent, published in zip(setup.sample(scales), expected, strict=True):
        assert latent.shape == published.shape
        assert relative_error(latent, published) < 1e-4
        assert (latent - published).abs().max() < (1e-3 if guided else 1e-4)  # scales of up to 7 multiply rounding
        assert published.std() > 0.1


def test_each_scale_acts_on_its_stream(setup: Setup) -> None:
    plain = Sampling(guidance=3.0, audio_guidance=1.0, modality_scale=1.0)
    first = replace(setup.settings(plain), sigmas=(1.0, 0.9))  # one step: the streams do not meet again
    video, sound = setup.sample(plain, settings=first)
    for changes, moves_video in (
        ({"audio_guidance": 7.0}, False),
        ({"audio_stg_scale": 1.0}, False),
        ({"audio_modality_scale": 3.0}, False),
        ({"modality_scale": 3.0, "audio_modality_scale": 1.0}, True),
    ):
        scales = replace(plain, stg_blocks=[1], **changes)
        other_video, other_sound = setup.sample(plain, settings=replace(setup.settings(scales), sigmas=(1.0, 0.9)))
        assert torch.equal(other_video, video) is not moves_video
        assert torch.equal(other_sound, sound) is moves_video


def test_the_defaults_are_those_of_ltx_pipelines_and_off_without_guidance() -> None:
    assert Sampling(stg_scale=1.0, rescale=0.5).audio_scales == (1.0, 1.0, 0.5, 1.0, 1.0)
    assert SCALES.audio_scales == (7.0, 1.0, 0.7, 3.0, 3.0)
    assert replace(SCALES, modality_scale=2.0, audio_guidance=4.0).audio_scales == (4.0, 1.0, 0.7, 2.0, 2.0)
    with pytest.raises(ConfigError, match=r"sample.modality_scale=0.5 must be at least 1, or null"):
        Sampling(modality_scale=0.5)
    with pytest.raises(ConfigError, match=r"sample.audio_rescale=2 must lie in \[0, 1\]"):
        Sampling(audio_rescale=2)
    off = AudioGuidance.from_config(Sampling(), None)
    assert off.passes(Guidance()) == 1
    text = torch.zeros(1, 1, 1)
    assert AudioGuidance.from_config(SCALES, text).passes(Guidance(3.0, text, 1.0)) == 4


def test_sound_that_is_given_stays_and_changes_the_video(setup: Setup) -> None:
    own, other = torch.randn(2, 1, setup.audio.channels, setup.l, setup.audio.bins)
    video, sound = setup.sample(SCALES, clean=own)
    assert torch.equal(sound, own)
    assert relative_error(setup.sample(SCALES, clean=other)[0], video) > 1e-3


def test_a_start_is_noised_to_the_first_level(setup: Setup) -> None:
    start = torch.randn(1, setup.audio.channels, setup.l, setup.audio.bins)
    clip = torch.randn(1, setup.base.geometry.channels, *SIZE)
    low = replace(setup.settings(Sampling()), sigmas=(1e-4, 0.0))
    video, sound = setup.sample(Sampling(), settings=low, start=start, video_start=clip)
    assert torch.allclose(sound, start, atol=0.01)
    assert torch.allclose(video, clip, atol=0.01)
    with pytest.raises(ValueError, match="give the sound to start from"):
        setup.sample(Sampling(), settings=low, video_start=clip)


def test_the_noise_of_video_and_references_is_that_without_sound(setup: Setup) -> None:
    """Without attention between the streams the video is the one that is sampled alone."""
    reference = Reference(torch.randn(1, setup.base.geometry.channels, *SIZE), strength=0.5)
    for block in setup.net.transformer_blocks:
        block.audio_to_video_attn.to_out[0].weight.data.zero_()
        block.audio_to_video_attn.to_out[0].bias.data.zero_()
    settings = setup.settings(replace(SCALES, modality_scale=1.0))
    alone = sample(setup.net, setup.text, SIZE, setup.base.geometry, FPS, settings, [SEED], [reference])
    together, _ = setup.sample(SCALES, reference, settings=settings)
    assert torch.allclose(together, alone, atol=1e-5)


def test_noise_of_the_sound_can_be_the_same_with_and_without_a_reference(setup: Setup) -> None:
    """`AudioStream.noise` replaces the drawn noise. Without attention from the video the sound is then the same."""
    for block in setup.net.transformer_blocks:
        block.video_to_audio_attn.to_out[0].weight.data.zero_()
        block.video_to_audio_attn.to_out[0].bias.data.zero_()
    settings = setup.settings(replace(SCALES, modality_scale=1.0, rescale=0.0))
    reference = Reference(torch.randn(1, setup.base.geometry.channels, *SIZE))
    noise = draw_noise([SEED + 1], (setup.audio.channels, setup.l, setup.audio.bins))
    drawn = [setup.sample(SCALES, *references, settings=settings)[1] for references in ((), (reference,))]
    same = [setup.sample(SCALES, *references, settings=settings, noise=noise)[1] for references in ((), (reference,))]
    assert torch.allclose(*same, atol=1e-5)
    assert relative_error(*drawn) > 0.1
