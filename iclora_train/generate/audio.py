"""The audio stream and the sound of a video: whether the stream is sampled, where sound comes from, what is written.

`model.audio` says whether the model sees both streams, `audio` what the file plays. Sound that is kept (copy,
reference) is never decoded from latents: the file has the source's own samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.adapters.sound_context import audio_placement
from iclora_train.config import ConfigError, require
from iclora_train.config.paths import user_path
from iclora_train.core.types import AudioGeometry, Sound, VideoShape
from iclora_train.diffusion.tiles import Tile
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.inputs import Inputs
from iclora_train.generate.kept import prefix_numbers
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.windows import Window
from iclora_train.ltx2.audio.codec import AudioCodec, audio_geometry
from iclora_train.ltx2.audio_stream import checkpoint_obstacle, device_obstacle, streams_in_words
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.frame_times import exact_rate
from iclora_train.media.kept_sound import kept_or_read
from iclora_train.media.sound import probe_sound, read_sound
from iclora_train.media.sound_track import KeptSound


@dataclass(frozen=True)
class SoundSource:
    """Sound of a file that the video keeps; start: seconds after its first frame at which the video begins."""

    media: str
    start: Fraction

    def encode(self, codec: AudioCodec, begin: Fraction, seconds: Fraction, frames: int) -> Tensor:
        """`seconds` of sound from the video's time `begin` on as latents (1,C,l,m), l = `frames`.

        It is read at the file's own rate, so that the codec changes the rate as it does for training.
        """
        try:
            return codec.encode(read_sound(user_path(self.media), self.start + begin, seconds), frames)
        except ValueError as error:
            raise ConfigError(f"{self.media}: {error}") from error


@dataclass(frozen=True)
class AudioPlan:
    """geometry: of the audio stream; None if the video stream is sampled alone. source: of sound that is kept.

    reference: the sound of audio_reference, with its placement. line: what is done, for the user.
    """

    mode: str
    geometry: AudioGeometry | None
    source: SoundSource | None
    line: str
    reference: tuple[SoundSource, str] | None = None

    def source_latents(self, base: BaseModel, shape: VideoShape, windows: Sequence[Window]) -> list[Tensor | None]:
        """With audio=reference the latents (1,C,l,m) of the source's sound in each window, else None for each."""
        if self.mode != "reference":
            return [None] * len(windows)
        assert self.source is not None
        assert self.geometry is not None
        codec, rate = AudioCodec.open(base.checkpoint), exact_rate(shape.fps)
        latents: list[Tensor | None] = []
        for window in windows:
            frames = self.geometry.latent_frames(window.frames, shape.fps)
            latents.append(self.source.encode(codec, window.start / rate, window.frames / rate, frames))
        return latents

    def encoded_reference(self, base: BaseModel, shape: VideoShape) -> tuple[Tensor, str] | None:
        """The latents (1,C,l,m) of the audio reference, as long as the video, and its placement; None without one."""
        if self.reference is None:
            return None
        assert self.geometry is not None
        source, placement = self.reference
        frames = self.geometry.latent_frames(shape.frames, shape.fps)
        seconds = shape.frames / exact_rate(shape.fps)
        return source.encode(AudioCodec.open(base.checkpoint), Fraction(0), seconds, frames), placement

    def track(
        self, base: BaseModel, shape: VideoShape, latent: Tensor | None, device: torch.device
    ) -> tuple[Sound | KeptSound, Sound] | None:
        """The sound of the mp4 and of the wav, as long as the video; None for a silent file. latent (1,C,l,m)."""
        seconds = shape.frames / exact_rate(shape.fps)
        if self.source is not None:
            path = user_path(self.source.media)
            track = kept_or_read(path, self.source.start, seconds)
            return track, track if isinstance(track, Sound) else read_sound(path, self.source.start, seconds)
        if self.mode == "none":
            return None
        assert latent is not None, "the sound is made even where the whole video is kept"
        sound = AudioCodec.open(base.checkpoint).to(device).decode(latent.to(device)).fitted(seconds)
        return sound, sound


def plan_audio(
    settings: GenerateSettings,
    base: BaseModel,
    adapter: Adapter,
    inputs: Inputs,
    shape: VideoShape,
    windows: Sequence[Window],
    tiles: Sequence[Tile],
    device: torch.device,
) -> AudioPlan:
    """The plan of a video. ConfigError names the setting that does not fit the base, the source or another setting."""
    mode, switch = settings.audio, settings.model.audio
    needed = mode in ("generate", "reference")
    require(
        not (needed and switch == "off"),
        f"audio={mode} samples the audio stream: set model.audio=auto or on, or another audio=",
    )
    require(
        mode != "generate" or len(windows) == 1,
        "audio=generate works for a video in one piece: sound of windows does not join. Leave out window_frames, or "
        "set audio=copy or audio=reference",
    )
    source = _source(settings, inputs, adapter, shape, base) if mode in ("copy", "reference") else None
    obstacle = _obstacle(base, tiles)
    if needed or switch == "on":
        require(obstacle is None, _refusal(settings, base, obstacle))
    elif switch == "off":
        obstacle = "model.audio=off"
    elif obstacle is None:
        obstacle = device_obstacle(base, settings.model, device)
    reference = _reference(settings, adapter)
    words = {
        "generate": "sound is generated",
        "copy": f"sound of {source and source.media} is kept",
        "reference": f"sound of {source and source.media} is given to the model and kept",
        "none": "the file is silent",
    }
    line = f"audio: {streams_in_words(obstacle)}; {words[mode]}"
    if reference is not None:
        line += f" after the audio reference {settings.audio_reference} ({reference[1]})"
    return AudioPlan(mode, None if obstacle else audio_geometry(base.checkpoint), source, line, reference)


def _reference(settings: GenerateSettings, adapter: Adapter) -> tuple[SoundSource, str] | None:
    """The sound of audio_reference, and how it is placed: as in training, unless audio_placement says otherwise.

    ConfigError for a file without sound, and for an adapter that does not say how it was trained.
    """
    name = settings.audio_reference
    if name is None:
        return None
    placement = settings.audio_placement or audio_placement(adapter.metadata)
    if placement is None:
        raise ConfigError(
            f"audio_reference={name}: adapter={', '.join(settings.adapter)} was not trained with one, or does not say "
            "how it was placed: set audio_placement=dubit (Lightricks' Dub-It) or av2av, or leave it out"
        )
    require(user_path(name).is_file(), f"audio_reference={name} is not a file: give a clip or a sound file")
    require(_track_of("audio_reference", name), f"audio_reference={name} has no sound: give a clip with sound")
    return SoundSource(name, Fraction(0)), placement


def _track_of(key: str, name: str) -> bool:
    """Whether the file of a setting has sound. ConfigError if it cannot be read."""
    try:
        return probe_sound(user_path(name)) is not None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error


def _refusal(settings: GenerateSettings, base: BaseModel, obstacle: str | None) -> str:
    """Why the audio stream cannot be sampled, with the setting that asks for it."""
    asked = f"audio={settings.audio}" if settings.audio in ("generate", "reference") else "model.audio=on"
    remedy = "set model.audio=auto" if asked.startswith("model") else "set audio=copy or audio=none"
    return f"{asked}: {base.name} cannot sample the audio stream here: {obstacle}; {remedy}"


def _obstacle(base: BaseModel, tiles: Sequence[Tile]) -> str | None:
    """Why the audio stream cannot be sampled, in words; None if nothing is in the way."""
    obstacle = checkpoint_obstacle(base)
    if obstacle is None and tiles:
        return "tiles are sampled without sound: leave out tile_width and tile_height for it"
    return obstacle


def _source(
    settings: GenerateSettings, inputs: Inputs, adapter: Adapter, shape: VideoShape, base: BaseModel
) -> SoundSource:
    """The file whose sound is kept: `audio_source`, else `source`, `prefix`, or the first reference along the video.

    ConfigError if there is none, or if it has no sound.
    """
    key, name, start = _named_source(settings, inputs, adapter, shape, base)
    require(
        _track_of(key, name),
        f"{key}={name} has no sound, and audio={settings.audio} keeps it: give a clip with sound, set audio_source to "
        "a file with it, or audio=none",
    )
    return SoundSource(name, start)


def _named_source(
    settings: GenerateSettings, inputs: Inputs, adapter: Adapter, shape: VideoShape, base: BaseModel
) -> tuple[str, str, Fraction]:
    """The setting, the file, and the time at which the video begins in it."""
    if settings.audio_source is not None:
        require(
            user_path(settings.audio_source).is_file(),
            f"audio_source={settings.audio_source} is not a file: give a clip or a sound file",
        )
        return "audio_source", settings.audio_source, Fraction(0)
    if settings.source is not None and _is_video(inputs.kept.source):
        return "source", settings.source, Fraction(0)
    if settings.prefix is not None and _is_video(inputs.kept.prefix):
        skipped = len(inputs.kept.prefix.frame_numbers(shape.fps)) if inputs.kept.prefix else 0
        skipped -= len(prefix_numbers(inputs.kept.prefix, shape.fps, base.geometry.temporal))
        return "prefix", settings.prefix, skipped / exact_rate(shape.fps)
    along = next((media for media, _ in inputs.along(settings, adapter) if _is_video(media)), None)
    if along is None:
        raise ConfigError(
            f"audio={settings.audio}: no source, no prefix and no reference along the video is a clip: set "
            "audio_source=FILE, a clip or a sound file, or audio=none"
        )
    return "reference", str(along.path), Fraction(0)


def _is_video(media: InputMedia | None) -> bool:
    return media is not None and media.times is not None
