"""Video files: exact round trips, and errors that name an unusable clip."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from iclora_train.media.clip import probe, read_clip
from iclora_train.media.shard_clip import decode_clip, encode_clip
from tests.clips import moving, write_clip


def write_with(path: Path, codec: str, frames: np.ndarray, pix_fmt: str, ticks: list[int], **options: str) -> Path:
    """Write a clip with any codec of PyAV; frame i is shown at ticks[i] / 1000 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        for rgb, tick in zip(frames, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbered(count: int) -> np.ndarray:
    """Uniform frames: frame i has the value 2 i."""
    return np.stack([np.full((32, 48, 3), 2 * i, np.uint8) for i in range(count)])


@pytest.mark.parametrize("shape", [(9, 64, 64), (1, 33, 47), (60, 32, 40), (5, 16, 48)])
def test_lossless_round_trip_is_bit_exact(shape, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    data = encode_clip(noise, 29.97)
    assert (decode_clip(data) == noise).all()
    (tmp_path / "a.mp4").write_bytes(data)
    assert (np.stack(list(read_clip(tmp_path / "a.mp4"))) == noise).all()
    assert encode_clip(noise, 29.97) == data


def test_browser_clip_is_small_close_and_streamable(tmp_path):
    frames = moving(12, 64, 96)[..., :1].repeat(3, axis=-1)  # grey: yuv420p halves the resolution of colour
    data = encode_clip(frames, 25, lossless=False)
    assert np.abs(decode_clip(data).astype(int) - frames).mean() < 3
    assert len(data) < len(encode_clip(frames, 25)) / 2
    assert data.index(b"moov") < data.index(b"mdat")
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"


def test_open_gop_with_b_frames_is_read_in_presentation_order(tmp_path):
    options = {"x264-params": "open-gop=1:keyint=12:bframes=4:b-adapt=0", "crf": "1"}
    path = write_with(tmp_path / "a.mp4", "libx264", numbered(60), "yuv420p", [40 * i for i in range(60)], **options)
    means = [frame.mean() for frame in read_clip(path)]
    assert np.abs(np.array(means) - 2 * np.arange(60)).max() < 1.5


def test_ten_bit_is_read(tmp_path):
    frames = moving(5, 32, 48)
    path = write_with(tmp_path / "a.mkv", "ffv1", frames, "yuv444p10le", [40 * i for i in range(5)])
    assert np.abs(np.stack(list(read_clip(path))).astype(int) - frames).max() <= 2


def test_probe_counts_frames_and_times_of_uneven_clips(tmp_path):
    ticks = [0, 40, 80, 200, 240, 400]
    path = write_with(tmp_path / "a.mkv", "ffv1", numbered(6), "yuv444p", ticks)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (6, 32, 48)
    assert info.times.seconds == pytest.approx([t / 1000 for t in ticks])
    assert (info.fps, info.times.mean_fps) == (25.0, 12.5)  # of the regular steps, and from first to last frame


def test_rotation_metadata_is_applied(tmp_path):
    frames = moving(4, 32, 48)
    data = bytearray(encode_clip(frames, 25))
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 16  # after the name, version, times, ids, layer and volume
    quarter_turn = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]  # clockwise
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter_turn)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert (probe(path).height, probe(path).width) == (48, 32)
    assert (np.stack(list(read_clip(path))) == np.rot90(frames, -1, axes=(1, 2))).all()


@pytest.mark.parametrize("read", [probe, lambda path: list(read_clip(path))], ids=["probe", "read_clip"])
def test_a_file_that_is_not_a_clip_is_refused_by_name(read, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 100)
    with pytest.raises(ValueError, match=r"text\.mp4: cannot be read as a video .*remove it from the clips"):
        read(text)
    with pytest.raises(ValueError, match=r"gone\.mp4: cannot be read as a video \(No such file"):
        read(tmp_path / "gone.mp4")
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 8000, "NONE", ""))
        sound.writeframes(bytes(16000))
    with pytest.raises(ValueError, match=r"sound\.mp4: no video stream"):
        read(tmp_path / "sound.mp4")


@pytest.mark.parametrize("fraction", [0.35, 0.6, 0.95])
def test_truncated_clip_is_refused(fraction, tmp_path):
    data = write_clip(tmp_path / "whole.mp4", frames=60).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(ValueError, match=r"cut\.mp4: (truncated|damaged).*re-encode"):
        probe(path)


def test_video_without_frames_is_refused(tmp_path):
    with av.open(str(tmp_path / "empty.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
        container.start_encoding()
    with pytest.raises(ValueError, match=r"empty\.mkv"):
        probe(tmp_path / "empty.mkv")


def test_damaged_bytes_are_refused(capfd):
    with pytest.raises(ValueError, match="cannot be decoded as a clip"):
        decode_clip(b"nonsense" * 100)
