"""Sound of clips and sound files: read at its time, sample by sample, and written into mp4 and wav files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from iclora_train.core.types import Sound
from iclora_train.media import sound_decoder
from iclora_train.media.clip import probe, read_clip
from iclora_train.media.kept_sound import kept_or_read
from iclora_train.media.shard_clip import decode_clip, encode_clip
from iclora_train.media.sound import encode_wav, probe_sound, read_sound, resample
from iclora_train.media.sound_track import KeptSound
from tests.clips import moving

FPS, FRAMES = 25, 25


def noise(samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Samples fp32 (channels,S) of 16 bits, up to 0.5 of full scale."""
    levels = np.random.default_rng(seed).integers(-16384, 16384, (channels, samples))
    return (levels / 32768).astype(np.float32)


def tone(seconds: float, rate: int, hertz: float = 440) -> Sound:
    """A tone that becomes louder, an octave higher on the right."""
    time = np.arange(round(seconds * rate)) / rate
    sides = [np.sin(2 * np.pi * hertz * k * time) * 0.2 * (1 + time / seconds) for k in (1, 2)]
    return Sound(np.stack(sides).astype(np.float32), rate)


def write(
    path: Path,
    pieces: list[tuple[float, np.ndarray]],
    rate: int = 48000,
    codec: str = "pcm_s16le",
    layout: str = "stereo",
    video_at: float | None = 0.0,
    rates: tuple[int, ...] = (),
) -> Path:
    """A file with 25 frames from `video_at` on (None: no video), and pieces of sound (seconds, samples)."""
    with av.open(str(path), "w") as container:
        if video_at is not None:
            video = container.add_stream("libx264", rate=FPS, options={"bf": "0"})
            assert isinstance(video, av.VideoStream)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            video.codec_context.time_base = Fraction(1, 1000)
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        for seconds, samples in pieces:
            levels = np.rint(samples * 32768).astype(np.int16).T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(levels), format="s16", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(seconds * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if video_at is not None:
            for number, rgb in enumerate(moving(FRAMES, 48, 64)):
                picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                picture.pts, picture.time_base = round(1000 * (video_at + number / FPS)), Fraction(1, 1000)
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
    return path


def test_a_wav_keeps_every_sample_and_a_section_begins_at_the_sample(tmp_path: Path) -> None:
    file, samples = tmp_path / "a.wav", noise(30000)
    file.write_bytes(encode_wav(Sound(samples, 44100)))
    assert str(probe_sound(file)) == "pcm_s16le, 44100 Hz, stereo"
    sound = read_sound(file)
    assert sound.rate == 44100
    assert np.array_equal(sound.samples, samples)
    section = read_sound(file, Fraction(1, 10), Fraction(1, 2))
    assert np.array_equal(section.samples, samples[:, 4410 : 4410 + 22050])
    loud = Sound(np.array([[1.5, -1.5, 1.0]], np.float32), 8000)
    file.write_bytes(encode_wav(loud))
    assert read_sound(file).samples[0].tolist() == [32767 / 32768, -1.0, 32767 / 32768]


def test_sound_that_is_late_and_short_stays_at_its_time(tmp_path: Path) -> None:
    samples = noise(9600)
    file = write(tmp_path / "a.mov", [(0.25, samples)])
    sound = read_sound(file, seconds=Fraction(1)).samples
    assert np.array_equal(sound, np.pad(samples, ((0, 0), (12000, 26400))))


def test_interrupted_sound_stays_at_its_time(tmp_path: Path) -> None:
    """Silence fills the rest of the video. Matroska stores times in milliseconds, yet no sample moves."""
    first, second = noise(9600, seed=1), noise(4800, seed=2)
    file = write(tmp_path / "a.mkv", [(0.25, first), (0.6, second)])
    expected = np.zeros((2, 48000), np.float32)
    expected[:, 12000:21600], expected[:, 28800:33600] = first, second
    assert np.array_equal(read_sound(file, seconds=Fraction(1)).samples, expected)
    section = read_sound(file, Fraction(3, 10), Fraction(4, 10)).samples
    assert np.array_equal(section, expected[:, 14400:33600])
    assert not read_sound(file, Fraction(5), Fraction(1)).samples.any()
    assert read_sound(file).samples.shape == (2, 33600)


def test_sound_longer_than_the_video_is_cut(tmp_path: Path) -> None:
    samples = noise(3 * 48000)
    file = write(tmp_path / "a.mov", [(0.0, samples)])
    assert np.array_equal(read_sound(file, seconds=Fraction(FRAMES, FPS)).samples, samples[:, :48000])
    assert np.array_equal(read_sound(file).samples, samples)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_sound_begins_with_the_first_frame_of_the_video(tmp_path: Path, name: str) -> None:
    """A video that begins half a second after its sound: what is heard before it is left out."""
    samples = noise(72000)
    file = write(tmp_path / name, [(0.0, samples)], video_at=0.5, codec="flac")
    assert np.array_equal(read_sound(file, seconds=Fraction(1)).samples, samples[:, 24000:])


def test_a_wrong_time_does_not_become_hours_of_silence(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mkv", [(0.0, noise(4800)), (9000.0, noise(4800))])
    with pytest.raises(ValueError, match=r"a\.mkv: the times of its sound are wrong"):
        read_sound(file)
    assert read_sound(file, seconds=Fraction(1)).samples.shape == (2, 48000)


def test_small_errors_of_times_are_no_gaps(tmp_path: Path) -> None:
    """Pieces of 1,000 samples at 44,100 per second: 22.68 ms are stored as 23 or 22."""
    samples = noise(44100)
    pieces = [(i / 44100, samples[:, i : i + 1000]) for i in range(0, 44100, 1000)]
    file = write(tmp_path / "a.mkv", pieces, rate=44100)
    assert np.array_equal(read_sound(file, seconds=Fraction(1)).samples, samples)


def test_far_sections_are_read_by_seeking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_decoder, "FAR", 1)
    samples = noise(6 * 48000)
    for name, codec in (("a.mov", "pcm_s16le"), ("a.wav", "pcm_s16le"), ("a.mp4", "alac")):
        file = write(tmp_path / name, [(0.0, samples)], codec=codec, video_at=None)
        section = read_sound(file, Fraction(7, 3), Fraction(1, 2))
        assert np.array_equal(section.samples, samples[:, 112000:136000]), name


def test_mono_of_8_khz_is_heard_on_both_sides_at_any_rate(tmp_path: Path) -> None:
    mono = tone(1, 8000).samples[:1]
    file = write(tmp_path / "a.mov", [(0.0, mono)], rate=8000, layout="mono")
    assert str(probe_sound(file)) == "pcm_s16le, 8000 Hz, mono"
    sound = read_sound(file, seconds=Fraction(1), rate=16000)
    assert (sound.rate, sound.samples.shape) == (16000, (2, 16000))
    assert np.array_equal(sound.samples[0], sound.samples[1])
    assert np.abs(sound.samples - tone(1, 16000).samples[:1])[:, 200:-200].max() < 2e-3


def test_more_channels_are_mixed_so_that_nothing_clips(tmp_path: Path) -> None:
    """The weights of Lightricks' trainer: side 1, centre and surround 0.707, divided by their sum."""
    samples = noise(4800, channels=6)
    file = write(tmp_path / "a.mov", [(0.0, samples)], layout="5.1")
    left, right, centre, _, back_left, back_right = samples
    weight = 2**-0.5
    expected = np.stack([left + weight * (centre + back_left), right + weight * (centre + back_right)]) / (
        1 + 2 * weight
    )
    assert str(probe_sound(file)) == "pcm_s16le, 48000 Hz, 6 channels"
    assert np.abs(read_sound(file).samples - expected).max() < 1e-6


def test_sound_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mov", [(0.0, noise(4800))], codec="pcm_f32le")
    wrong = noise(4800)[:, 1000].tobytes()
    assert wrong in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(wrong, np.array([np.nan, 0], np.float32).tobytes(), 1))
    with pytest.raises(ValueError, match=r"a\.mov: its sound has values that are not finite"):
        read_sound(file)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s32le", "pcm_f32le", "pcm_s16be"])
def test_every_sample_format_has_the_same_scale(tmp_path: Path, codec: str) -> None:
    samples = noise(4800)
    file = write(tmp_path / "a.mov", [(0.0, samples)], codec=codec)
    assert np.abs(read_sound(file).samples - samples).max() <= (1 / 128 if codec == "pcm_u8" else 0)


@pytest.mark.parametrize(("rate", "new"), [(48000, 16000), (44100, 16000), (16000, 48000), (24000, 44100)])
def test_resampled_sound_keeps_its_times(rate: int, new: int) -> None:
    seconds = 1 + 1 / rate
    sound = resample(tone(seconds, rate), new)
    assert sound.samples.shape == (2, -(-(rate + 1) * new // rate))
    assert np.abs(sound.samples[:, :new] - tone(seconds, new).samples[:, :new])[:, 300:-300].max() < 1e-3


def test_a_file_without_sound_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    silent, text = tmp_path / "silent.mp4", tmp_path / "text.wav"
    silent.write_bytes(encode_clip(moving(5, 48, 64), FPS, lossless=False))
    assert probe_sound(silent) is None
    with pytest.raises(ValueError, match=r"silent\.mp4: it has no sound; give a file with sound, or do without"):
        read_sound(silent)
    with pytest.raises(ValueError, match=r"silent\.mp4: it has no sound"):
        kept_or_read(silent, Fraction(0), Fraction(1))
    text.write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav: cannot be read"):
        read_sound(text)
    with pytest.raises(ValueError, match=r"missing\.wav: cannot be read"):
        probe_sound(tmp_path / "missing.wav")


def test_damaged_sound_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mkv", [(0.0, noise(48000))], codec="flac")
    data = bytearray(file.read_bytes())
    for place in range(len(data) // 4, len(data) - len(data) // 4, 499):
        data[place] ^= 0xFF
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"a\.mkv: its sound cannot be decoded"):
        read_sound(file, seconds=Fraction(1))


@pytest.mark.parametrize("rate", [48000, 24000, 8000])
def test_an_mp4_has_its_sound_at_the_first_frame(tmp_path: Path, rate: int) -> None:
    sound, frames, file = tone(1, rate), moving(FRAMES, 48, 64), tmp_path / "a.mp4"
    data = encode_clip(frames, FPS, lossless=False, sound=sound)
    assert data == encode_clip(frames, FPS, lossless=False, sound=sound)
    file.write_bytes(data)
    assert str(probe_sound(file)) == f"aac, {rate} Hz, stereo"
    heard = read_sound(file).samples
    assert heard.shape == sound.samples.shape
    middle = slice(rate // 10, -rate // 10)
    errors = [np.abs(np.roll(heard, shift, axis=1) - sound.samples)[:, middle].mean() for shift in range(-20, 21)]
    assert int(np.argmin(errors)) == 20
    assert min(errors) < 0.01
    assert probe(file).frames == FRAMES
    plain = decode_clip(encode_clip(frames, FPS, lossless=False))
    assert np.array_equal(np.stack(list(read_clip(file))), plain)
    assert np.array_equal(decode_clip(data), plain)


def test_an_mp4_plays_sound_of_a_rate_that_aac_does_not_have(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(encode_clip(moving(FRAMES, 48, 64), FPS, lossless=False, sound=tone(1, 22222)))
    assert str(probe_sound(file)) == "aac, 48000 Hz, stereo"
    assert read_sound(file).samples.shape[1] == 48000


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


@pytest.mark.parametrize(
    ("name", "codec", "layout", "rate"),
    [
        ("a.mp4", "aac", "stereo", 44100),
        ("a.mp4", "libmp3lame", "stereo", 48000),
        ("a.mkv", "aac", "mono", 16000),
        ("a.mkv", "flac", "5.1", 48000),
    ],
)
def test_the_sound_of_a_whole_clip_is_kept_unchanged(
    tmp_path: Path, name: str, codec: str, layout: str, rate: int
) -> None:
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    file = write(tmp_path / name, [(0.0, noise(rate, channels))], rate=rate, codec=codec, layout=layout)
    kept, out = kept_or_read(file, Fraction(0), Fraction(1)), tmp_path / "out.mp4"
    assert kept == KeptSound(file)
    out.write_bytes(encode_clip(moving(FRAMES, 48, 64, seed=1), FPS, lossless=False, sound=kept))
    assert packets(out) == packets(file)
    assert np.array_equal(read_sound(out, seconds=Fraction(1)).samples, read_sound(file, seconds=Fraction(1)).samples)


@pytest.mark.parametrize("video_at", [0.0, 0.25])
def test_kept_sound_stays_in_time_when_the_video_begins_late(tmp_path: Path, video_at: float) -> None:
    file = write(tmp_path / "a.mkv", [(0.1, noise(48000))], codec="flac", video_at=video_at)
    kept, out = kept_or_read(file, Fraction(0), Fraction(11, 10)), tmp_path / "out.mp4"
    assert kept == KeptSound(file)
    out.write_bytes(encode_clip(moving(FRAMES, 48, 64, seed=1), FPS, lossless=False, sound=kept))
    heard = read_sound(out, seconds=Fraction(1)).samples
    assert np.array_equal(heard, read_sound(file, seconds=Fraction(1)).samples)


def test_a_part_of_a_clip_and_codecs_that_no_mp4_has_are_encoded_again(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mp4", [(0.0, noise(48000))], codec="aac")
    part = kept_or_read(file, Fraction(1, 5), Fraction(1, 2))
    assert isinstance(part, Sound)
    assert np.array_equal(part.samples, read_sound(file).samples[:, 9600:33600])
    assert isinstance(kept_or_read(file, Fraction(0), Fraction(1, 2)), Sound)
    raw = write(tmp_path / "a.mov", [(0.0, noise(48000))])
    assert isinstance(kept_or_read(raw, Fraction(0), Fraction(1)), Sound)


def test_sound_that_would_move_is_encoded_again_at_its_time(tmp_path: Path) -> None:
    """Matroska rounds the delay of Opus to milliseconds: its packets would play half a millisecond early in an mp4."""
    sound = tone(1, 48000)
    file = write(tmp_path / "a.mkv", [(0.0, sound.samples)], codec="libopus")
    again = kept_or_read(file, Fraction(0), Fraction(1))
    assert isinstance(again, Sound)
    errors = [np.abs(np.roll(again.samples, lag, axis=1) - sound.samples)[:, 6000:-6000].mean() for lag in (-24, 0, 24)]
    assert int(np.argmin(errors)) == 1
