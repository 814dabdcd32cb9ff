"""The audio stream of sampled clips: whether it is sampled (`model.audio`), its text features and its noise.

The clips are judged as pictures. The sound matters because audio tokens change the video; where the held-out pairs have
sound, it is judged too (`scoring.sound_scores`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eval.clips.conditions import Item
from eval.clips.windows import HeldOut
from iclora_train.config import Config, Sampling, require
from iclora_train.core.fingerprint import digest
from iclora_train.core.types import AudioGeometry, LatentPair
from iclora_train.diffusion.guidance import AudioGuidance
from iclora_train.diffusion.joint_sampler import AudioStream
from iclora_train.diffusion.sampler import draw_noise
from iclora_train.ltx2.audio.codec import audio_geometry
from iclora_train.ltx2.audio_stream import checkpoint_obstacle, device_obstacle, streams_in_words
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text_features import TextFeatures


class StreamLatents(NamedTuple):
    """What is sampled: the video (B,C,f,h,w), and its sound (B,C,l,m) where the audio stream is sampled."""

    video: Tensor
    sound: Tensor | None = None


class BatchLatents(NamedTuple):
    """The latents of a batch: of its videos (B,C,f,h,w), and of the sound of each clip (C,l,m), None without it."""

    video: Tensor
    sounds: list[Tensor | None]

    @classmethod
    def joined(cls, parts: Sequence[StreamLatents], groups: Sequence[Sequence[int]]) -> BatchLatents:
        """The batch whose clips were sampled in groups. groups: the numbers of the clips of each part."""
        numbers = [number for group in groups for number in group]
        order = torch.tensor(numbers).argsort()
        video = torch.cat([part.video for part in parts])
        sounds = [sound for part in parts for sound in ([None] * len(part.video) if part.sound is None else part.sound)]
        return cls(video[order.to(video.device)], [sounds[row] for row in order.tolist()])


@dataclass(frozen=True)
class AudioChoice:
    """Whether the audio stream is sampled. obstacle: why it is not; None if it is. in_checkpoint: whether the base has
    an audio half, so that others sample it."""

    obstacle: str | None
    in_checkpoint: bool

    @property
    def is_on(self) -> bool:
        """Whether it is sampled."""
        return self.obstacle is None

    @property
    def setting(self) -> str:
        """The value of model.audio that chooses the same."""
        return "on" if self.is_on else "off"

    @property
    def overrides(self) -> list[str]:
        """Settings by which another process samples the same: it would ask for the memory of its own GPU."""
        return [f"model.audio={self.setting}"]

    @property
    def line(self) -> str:
        """What is sampled, in the words of `generate`."""
        return f"audio: {streams_in_words(self.obstacle)}"

    @property
    def json_facts(self) -> dict[str, Any]:
        """The entries of `audio` in scores.json that do not depend on the adapter."""
        return {"stream": self.setting, "reason": self.obstacle, "in_checkpoint": self.in_checkpoint}


def choose_audio(config: Config, base: BaseModel, held_out: HeldOut, device: torch.device) -> AudioChoice:
    """The choice of model.audio. auto: on where checkpoint, text features and memory allow it. ConfigError if `on` is
    not possible."""
    obstacle = checkpoint_obstacle(base) or _text_obstacle(config, base, held_out)
    if config.model.audio == "on":
        refusal = f"model.audio=on: {base.name} cannot sample the audio stream here: {obstacle}; set model.audio=auto"
        require(obstacle is None, refusal)
    elif config.model.audio == "off":
        obstacle = "model.audio=off"
    elif obstacle is None:
        obstacle = device_obstacle(base, config.model, device)
    return AudioChoice(obstacle, base.has_audio_half)


def _text_obstacle(config: Config, base: BaseModel, held_out: HeldOut) -> str | None:
    """Why there are no text features of the audio stream; None if there are, or if they can be made."""
    if base.has_text_encoder or not held_out.captions_without_audio_text():
        return None
    return (
        f"the latents in {config.data.root} have no text features of the audio stream: set model.text_encoder to the "
        "folder of its Gemma, or prepare the data with data.sound"
    )


class AudioSampling:
    """Makes the audio streams of batches of windows. empty (1,T,D'): text features of the empty caption.

    text: hash of what made the text features that are not in the latents; None if all are there.
    """

    def __init__(self, base: BaseModel, held_out: HeldOut, folder: Path, device: torch.device) -> None:
        """Encode the captions without features into `folder`. The text encoder is freed before this returns."""
        self.geometry: AudioGeometry = audio_geometry(base.checkpoint)
        self.device, self._frame_times = device, base.geometry.temporal
        self._features: TextFeatures | None = None
        self.text: str | None = None
        captions = held_out.captions_without_audio_text()
        if captions:
            self._features = TextFeatures(folder, base, audio=True)
            self._features.encode_missing(["", *captions], device)
            self.text = digest(base.latent_fingerprints)[:16]
            empty = self._features.read_audio("")
        else:
            empty = held_out.empty_audio_text()
        self.empty = empty[None].to(device)

    def guidance(self, config: Sampling) -> AudioGuidance:
        """The scales of both streams."""
        return AudioGuidance.from_config(config, self.empty)

    def frames(self, latent_frames: int, fps: float) -> int:
        """Latent frames l of the sound of a clip with `latent_frames` of video."""
        return self.geometry.latent_frames((latent_frames - 1) * self._frame_times + 1, fps)

    def rows_by_length(self, latent_frames: int, rates: Sequence[float]) -> list[list[int]]:
        """The numbers of clips in groups whose sounds are equally long. rates: frames per second of each clip."""
        rows: dict[int, list[int]] = {}
        for row, fps in enumerate(rates):
            rows.setdefault(self.frames(latent_frames, fps), []).append(row)
        return list(rows.values())

    def stream(
        self,
        pairs: Sequence[LatentPair],
        batch: Sequence[Item],
        latent_frames: int,
        empty_prompt: bool,
        start: Tensor | None = None,
        donors: Sequence[LatentPair] | None = None,
        placement: str = "av2av",
    ) -> AudioStream:
        """The stream of clips whose sounds are equally long; start (B,C,l,m): clean latents to begin from.

        Its noise is a function of the window and the seed: it is the same under every condition. donors: whose audio
        references the clips have, at this placement; None: without any.
        """
        text = self.empty.expand(len(pairs), -1, -1)
        if not empty_prompt:
            text = torch.stack([self._text_of(pair) for pair in pairs]).to(self.device)
        frames = self.frames(latent_frames, pairs[0].fps)
        shape = (self.geometry.channels, frames, self.geometry.bins)
        noise = draw_noise([item.sound_seed for item in batch], shape)
        reference = None if donors is None else self._references(donors, frames)
        return AudioStream(
            self.geometry, frames, text, start=start, noise=noise, reference=reference, placement=placement
        )

    def probe_stream(self, count: int, latent_frames: int, fps: float) -> AudioStream:
        """The stream of `count` synthetic probes, whose captions are empty."""
        return AudioStream(self.geometry, self.frames(latent_frames, fps), self.empty.expand(count, -1, -1))

    def specification(self, config: Sampling, placement: str | None) -> dict[str, Any]:
        """What determines the stream besides base, latents and items, JSON-serialisable.

        placement: of audio references; None without them.
        """
        reference = {} if placement is None else {"reference": placement}
        return {"text": self.text, "scales": list(config.audio_scales), **reference}

    def _references(self, donors: Sequence[LatentPair], frames: int) -> Tensor:
        """Audio references (B,C,l,m) as long as the sounds of the clips.

        A longer one is cut, a shorter one goes on with its last latent frame.
        """
        latents = []
        for pair in donors:
            latent = pair.audio_reference
            require(latent is not None, f"task.audio_reference: {pair.key} has none in data.root: run data_prep again")
            assert latent is not None
            latents.append(latent[:, torch.arange(frames).clamp(max=latent.shape[1] - 1)])
        return torch.stack(latents).to(self.device)

    def _text_of(self, pair: LatentPair) -> Tensor:
        """Features (T,D') of the caption of a window."""
        if pair.audio_text is not None:
            return pair.audio_text
        assert self._features is not None
        return self._features.read_audio(pair.caption)
