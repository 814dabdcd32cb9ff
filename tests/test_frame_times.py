"""Frames are chosen by exact times: no frame of a clip is lost to rounding, and none is repeated in a window."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.clips.clip_list import Clip
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.windows import heldout_windows, train_windows
from iclora_train.config import ConfigError, Data
from iclora_train.media.clip import ClipInfo, probe, read_clip
from iclora_train.media.frame_times import FrameTimes, exact_rate

FILM, NTSC, NTSC_60 = Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)
RATES = {
    23.976: FILM,
    24: Fraction(24),
    25: Fraction(25),
    29.97: NTSC,
    30: Fraction(30),
    50: Fraction(50),
    59.94: NTSC_60,
}
CODECS = {"mp4": "mpeg4", "mov": "mpeg4", "mkv": "mpeg4", "avi": "mpeg4", "webm": "libvpx", "gif": "gif"}
LENGTHS = (9, 17, 33, 49, 81, 121)
MILLISECOND = Fraction(1, 1000)


def write(path: Path, frames: int, rate: Fraction | None = None, ticks: list[int] | None = None) -> Path:
    """A grey clip at a constant rate, or with frame i at ticks[i] milliseconds."""
    options = {"deadline": "realtime", "cpu-used": "8"} if path.suffix == ".webm" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix[1:]], rate=rate or 1000, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = 16, 16
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame(16, 16, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([number * 2 % 256]) * plane.buffer_size)
            if ticks:
                frame.pts, frame.time_base = ticks[number], MILLISECOND
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return path


def of_times(ticks: list[int], time_base: Fraction = MILLISECOND, declared: int = 1000) -> FrameTimes:
    return FrameTimes.measure(ticks, time_base, Fraction(declared))


def probed(times: FrameTimes) -> ProbedClip:
    return ProbedClip(Clip("a", Path("a"), ""), ClipInfo(48, 64, times))


def data(**changes: object) -> Data:
    return Data(**{"root": "", "frames": 9, "height": 32, "width": 32, "train_windows": 40, **changes})


# --- lengths ---


@pytest.mark.parametrize(("suffix", "fps"), [(s, f) for s in CODECS for f in RATES if s != "gif" or f <= 50])
def test_a_clip_of_the_asked_rate_and_length_keeps_every_frame(fps, suffix, tmp_path):
    for length in LENGTHS:
        info = probe(write(tmp_path / f"{length}.{suffix}", length, RATES[fps]))
        assert info.fps == pytest.approx(fps, rel=0.02 if suffix == "gif" else 1e-4)  # a GIF has ticks of 10 ms
        for asked in (fps, info.fps, None):
            assert info.times.frame_numbers(asked).tolist() == list(range(length))
        settings = data(frames=length, fps=fps, height=16, width=16)
        (window, *_) = train_windows([ProbedClip(Clip("a", tmp_path, ""), info)], settings)
        assert window.indices == tuple(range(length))


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("time_base", [MILLISECOND, Fraction(1, 90000), Fraction(1, 15360), Fraction(1, 16000)])
@pytest.mark.parametrize("offset", [0, 0.37, 0.81])
def test_rounded_times_lose_no_frame(fps, time_base, offset):
    """Times are rounded to the container's ticks, or to milliseconds and then copied to another container."""
    for length in (9, 17, 49, 97, 121, 201):
        exact = [i / RATES[fps] / time_base + Fraction(offset) for i in range(length)]
        copied = [round(i / RATES[fps] * 1000 + Fraction(offset)) * MILLISECOND / time_base for i in range(length)]
        for stamps in ([int(t) for t in exact], [round(t) for t in exact], [round(t) for t in copied]):
            times = of_times(stamps, time_base)
            assert times.is_constant
            assert len(times.frame_numbers(fps)) == length
            if length > 50:
                assert times.fps == pytest.approx(fps, rel=2e-4)


@pytest.mark.parametrize(
    ("rate", "asked", "length", "kept"),
    [
        (NTSC_60, 29.97, 97, range(0, 97, 2)),
        (NTSC, 23.976, 61, [0, 1, 2, 4, 5, 6, 7, 9, 10]),
        (Fraction(60), 24, 121, [0, 2, 5, 7, 10, 12, 15]),
        (Fraction(25), 24, 51, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14]),
        (Fraction(24), 23.976, 49, range(49)),
        (FILM, 24, 49, range(49)),
        (FILM, 23.98, 49, range(49)),
        (Fraction(100, 3), 33.333, 49, range(49)),
    ],
)
def test_the_frames_nearest_in_time_are_chosen(rate, asked, length, kept):
    numbers = FrameTimes.constant(length, rate).frame_numbers(asked)
    assert numbers[: len(kept)].tolist() == list(kept)
    assert len(numbers) == 1 + round((length - 1) * asked / float(rate))


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        *((fps, FILM) for fps in (23.976, 23.98, 23.97, 24000 / 1001)),
        (29.97, NTSC),
        (59.94, NTSC_60),
        (47.952, Fraction(48000, 1001)),
        (119.88, Fraction(120000, 1001)),
        *((fps, Fraction(fps)) for fps in (1, 12, 15, 24, 25, 30, 60, 120, 240, 12.5)),
        (33.333, Fraction(100, 3)),
        (21.7, Fraction(217, 10)),
        (0.0003, Fraction(3, 10000)),
    ],
)
def test_a_rounded_rate_means_the_exact_rate(fps, rate):
    assert exact_rate(fps) == rate


@pytest.mark.parametrize("fps", [0, -24, 1e9, float("inf"), float("nan")])
def test_a_senseless_rate_is_refused(fps):
    with pytest.raises(ConfigError, match=r"data\.fps=.* must be above 0 and at most 1000"):
        data(fps=fps)


@pytest.mark.parametrize("rate", [FILM, NTSC, NTSC_60])
def test_an_avi_copied_from_matroska_is_whole(rate, tmp_path):
    """Its header declares 1,000 frames a second, and its packets have no duration."""
    source, copy = write(tmp_path / "a.mkv", 33, rate), tmp_path / "a.avi"
    with av.open(str(source)) as old, av.open(str(copy), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.time_base = MILLISECOND
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    info = probe(copy)
    assert info.fps == pytest.approx(float(rate), rel=1e-4)
    assert info.times.frame_numbers(info.fps).tolist() == list(range(33))


# --- variable rates and repeated frames ---

PAUSE = [round(1000 * t) for t in (*np.arange(60) / 30, *(3.5 + np.arange(75) / 30))]  # 1.5 s between frames 59 and 60
SLOWER = [round(1000 * t) for t in (*np.arange(60) / 60, *(1 + np.arange(9) / 4))]
DROPPED = [round(1000 * i / 30) for i in range(120) if i % 7 or i < 40]  # duplicates are left out, as phones do
JITTER = np.cumsum(np.random.default_rng(0).integers(24, 43, 200)).tolist()


@pytest.mark.parametrize(
    ("ticks", "fps", "nominal"),
    [
        (PAUSE, None, 30),
        (PAUSE, 24, 30),
        (SLOWER, None, 60),
        (SLOWER, 24, 60),
        (DROPPED, None, 30),
        (JITTER, None, 29.8),
    ],
)
def test_windows_of_a_variable_clip_show_each_frame_once_at_its_time(ticks, fps, nominal):
    times = of_times(ticks)
    assert not times.is_constant
    assert times.fps == pytest.approx(nominal, rel=0.01)
    windows = train_windows([probed(times)], data(fps=fps)) + heldout_windows([probed(times)], data(fps=fps))
    for window in windows:
        shown = np.array([ticks[i] for i in window.indices]) / 1000
        assert (np.diff(window.indices) > 0).all()
        assert np.abs(shown - shown[0] - np.arange(9) / window.fps).max() <= 1 / window.fps
        assert window.fps == (fps or times.fps)
    assert {window.indices[0] < 60 for window in windows} == ({True} if ticks in (SLOWER, DROPPED) else {True, False})


def test_all_constant_parts_of_a_clip_with_a_pause_are_used():
    starts = probed(of_times(PAUSE)).window_starts(data())
    assert len(starts) == (60 - 8) + (75 - 8)


@pytest.mark.parametrize(
    ("rate", "frames", "reason"),
    [
        (22, 9, None),  # 12 frames follow each other before one is repeated
        (
            22,
            17,
            "without a repeated one are fewer than data.frames=17: 22 frames a second are too few for data.fps=24",
        ),
        (12, 9, "1 frames without a repeated one"),
        (25, 17, None),
    ],
)
def test_a_clip_is_dropped_if_every_window_would_repeat_a_frame(rate, frames, reason):
    clip, settings = probed(FrameTimes.constant(100, Fraction(rate))), data(fps=24, frames=frames)
    if reason:
        with pytest.raises(ValueError, match=reason):
            clip.best_bucket(settings)
    else:
        windows = train_windows([clip], settings)
        assert all((np.diff(window.indices) > 0).all() for window in windows)
        assert len(windows) == 40


def test_the_reason_of_a_variable_clip_names_its_gaps():
    with pytest.raises(ValueError, match="the clip has a variable rate with gaps, 30 fps where it is regular"):
        probed(of_times(PAUSE)).best_bucket(data(frames=81))
    note = probed(of_times(PAUSE)).timing_note(24)
    assert (
        note
        == "variable rate of 30 fps, read at 24 fps; no window crosses the places where 36 frames would be repeated"
    )
    assert probed(FrameTimes.constant(50, Fraction(30))).timing_note(24) is None


@pytest.mark.parametrize(
    ("stamps", "numbers"),
    [
        ([0, 40, 80, 80, 120, 160], [0, 1, 2, 4, 5]),  # WebM with two frames at one time
        ([0, 40, 20, 80, 120, 160], [0, 1, 2, 3, 4, 5]),  # decreasing times: the declared rate
        ([0, None, 80, 120, 160, 200], [0, 1, 2, 3, 4, 5]),
        ([7, 7, 7], [0, 1, 2]),
        ([90000], [0]),
    ],
)
def test_files_with_bad_times_are_read(stamps, numbers):
    assert FrameTimes.measure(stamps, MILLISECOND, Fraction(25)).frame_numbers(25).tolist() == numbers


def test_times_far_apart_neither_divide_by_zero_nor_fill_the_memory():
    slow = of_times([3_600_000 * i for i in range(5)])
    assert slow.fps == pytest.approx(1 / 3600)
    with pytest.raises(ValueError, match=r"0\.000277778 frames a second are not the rate of a video"):
        probed(slow).best_bucket(data(frames=5))
    jump = of_times([*range(0, 400, 40), *range(10**15, 10**15 + 400, 40)])
    assert len(probed(jump).window_starts(data(fps=25.0))) == 2 + 2


# --- edit lists ---


def test_an_edit_list_hides_frames(tmp_path):
    """Phones trim a recording by an edit list: players and this project show the frames inside only."""
    path = write(tmp_path / "a.mp4", 60, Fraction(30))
    whole = [int(frame.mean()) for frame in read_clip(path)]
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"elst") + 12  # after version, flags and count: duration in 1/1000 s, media time in ticks
    ticks_per_frame = int.from_bytes(raw[raw.index(b"mdhd") + 16 : raw.index(b"mdhd") + 20], "big") // 30
    raw[entry : entry + 8] = (1000).to_bytes(4, "big") + (20 * ticks_per_frame).to_bytes(4, "big")
    trimmed = tmp_path / "trimmed.mp4"
    trimmed.write_bytes(raw)
    assert [int(frame.mean()) for frame in read_clip(trimmed)] == whole[20:50]
    assert probe(trimmed).times.seconds == pytest.approx([i / 30 for i in range(30)])
