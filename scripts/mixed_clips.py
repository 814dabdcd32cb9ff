"""Write a folder of odd clips, one oddity each: `python -m scripts.mixed_clips OUT_DIR`.

The files are what cameras, editors, phones, browsers and interrupted copies leave in a folder of clips: rates,
rotations, colours, encodings of captions, files that are not videos. CLIPS says of each what `data_prep` makes of it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.stream import Disposition

HEIGHT, WIDTH, FRAMES, RATE = 64, 96, 24, 25
CAPTION = "A man\u2019s dog jumps \u2013 \u201chop\u201d."
TURN, MIRROR = (0, 1, -1, 0), (-1, 0, 0, 1)  # upper left parts of display matrices: a quarter turn, a mirror image
PQ, HLG = 16, 18  # transfer functions, as numbers of ITU-T H.273
BT2020, BT2020_NCL = 9, 9  # primaries and matrix


def texture(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise that slides by two pixels per frame: uint8 (F,H,W,3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width + 2 * frames, 3), dtype=np.uint8)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([picture[:, 2 * i : 2 * i + width] for i in range(frames)])


def encode(
    path: Path,
    frames: np.ndarray | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = RATE,
    ticks: list[int] | None = None,
    cover: bool = False,
    **settings: Any,
) -> None:
    """Write frames (F,H,W,3 or 4), by default a texture of its own per name. ticks: times in milliseconds.

    cover: add a still picture as cover art. settings: attributes of the codec context, or `options` of the encoder.
    """
    frames = texture(seed=sum(os.fsencode(path.name))) if frames is None else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=settings.pop("options", {}))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        art = _add_cover(container, frames[0]) if cover else []
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[-1] == 4 else "rgb24")
            if ticks is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
                frame.pts, frame.time_base = ticks[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        container.mux(art)


def _add_cover(container: av.container.OutputContainer, pixels: np.ndarray) -> list[av.Packet]:
    """Add a stream for cover art; returns its packets."""
    stream = container.add_stream("mjpeg", rate=RATE)
    assert isinstance(stream, av.VideoStream)
    stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuvj420p"
    stream.disposition = Disposition.attached_pic
    picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
    return [*stream.encode(picture), *stream.encode()]


def encoded(**settings: Any) -> Callable[[Path], None]:
    """`encode` with these settings, as a function of the path."""
    return lambda path: encode(path, **settings)


def with_matrix(matrix: tuple[int, int, int, int]) -> Callable[[Path], None]:
    """Write an mp4 with a display matrix in its track header."""

    def write(path: Path) -> None:
        encode(path)
        data = bytearray(path.read_bytes())
        start = data.index(b"tkhd") + 4 + 4 + 20 + 16  # after the name, version, times, ids, layer and volume
        a, b, c, d = (value << 16 for value in matrix)
        for i, value in enumerate((a, b, 0, c, d, 0, 0, 0, 1 << 30)):
            data[start + 4 * i : start + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
        path.write_bytes(data)

    return write


def with_alpha(path: Path) -> None:
    """Write a disc on nothing; the hidden colour of the nothing is green."""
    rgba = np.zeros((FRAMES, HEIGHT, WIDTH, 4), np.uint8)
    rgba[..., 1] = 255
    for number, frame in enumerate(rgba):
        cv2.circle(frame, (20 + 2 * number, 32), 20, (220, 30, 30, 255), -1)
    encode(path, rgba, "qtrle", "argb")


def part(share: float) -> Callable[[Path], None]:
    """Write the beginning of an mp4 whose index stands at its end (unfinished) or at its start (cut off)."""

    def write(path: Path) -> None:
        encode(path, codec="mpeg4", options={"qscale": "3"})
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def cut_off(path: Path) -> None:
    """Write the first 70 % of an mkv."""
    encode(path, codec="ffv1")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])


def damaged(path: Path) -> None:
    """Write a clip and overwrite a part of its pictures with zeros."""
    encode(path, options={"g": "6", "crf": "10"})
    data = bytearray(path.read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)


def of_two_sizes(path: Path) -> None:
    """Write two H.264 streams of different sizes one after another."""
    parts = []
    for width in (WIDTH, 2 * WIDTH):
        encode(path.with_suffix(".h264"), texture(12, HEIGHT, width))
        parts.append(path.with_suffix(".h264").read_bytes())
    path.with_suffix(".h264").unlink()
    path.write_bytes(b"".join(parts))


def sound(path: Path) -> None:
    """Write an mp4 with sound and cover art, but without a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        art = _add_cover(container, texture(1)[0])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(), *art])


def captioned(data: bytes) -> Callable[[Path], None]:
    """Write a clip with these bytes in the text file next to it."""

    def write(path: Path) -> None:
        encode(path)
        path.with_suffix(".txt").write_bytes(data)

    return write


def holding(data: bytes) -> Callable[[Path], None]:
    """Write a file with this content."""
    return lambda path: path.write_bytes(data) and None


def linked(target: str) -> Callable[[Path], None]:
    """Make a link."""
    return lambda path: path.symlink_to(target)


def behind_a_link(path: Path) -> None:
    """Write a clip into a folder outside, and link the folder."""
    outside = path.parents[1].with_name(f"{path.parents[1].name}-disk2")
    outside.mkdir(exist_ok=True)
    path.parent.symlink_to(outside)
    encode(path)


@dataclass(frozen=True)
class OddClip:
    """write: makes the file. dropped: part of the reason why it is left out; empty if it is used. caption: its text.

    read_as: part of what report.json says about its colours, shape or times; empty if it says nothing.
    """

    write: Callable[[Path], object]
    dropped: str = ""
    caption: str = ""
    read_as: str = ""


HDR = {"codec": "ffv1", "pix_fmt": "yuv420p10le", "color_primaries": BT2020, "colorspace": BT2020_NCL}
PHONE = [*range(0, 12 * 17, 17), *range(12 * 17, 12 * 17 + 20 * 40, 40)]  # 60 frames a second, then 25
CLIPS: dict[str, OddClip] = {
    "plain.mp4": OddClip(encoded()),
    "23.976.mp4": OddClip(encoded(rate=Fraction(24000, 1001))),
    "29.97.mp4": OddClip(encoded(rate=Fraction(30000, 1001))),
    "60 fps.mkv": OddClip(encoded(rate=60, frames=texture(60))),
    "12 fps.mp4": OddClip(encoded(rate=12), "12 frames a second are too few for data.fps=24"),
    "one picture a minute.mkv": OddClip(encoded(ticks=[60_000 * i for i in range(FRAMES)]), "too few for data.fps=24"),
    "variable rate.mkv": OddClip(
        encoded(codec="ffv1", ticks=PHONE, frames=texture(len(PHONE))), read_as="variable rate of"
    ),
    "starts late.mp4": OddClip(encoded(ticks=[1000 + 40 * i for i in range(FRAMES)])),
    "b-frames.mp4": OddClip(encoded(options={"bf": "3", "x264-params": "open-gop=1:keyint=12"})),
    "turned.mp4": OddClip(with_matrix(TURN)),
    "mirrored.mov": OddClip(with_matrix(MIRROR)),
    "pq.mkv": OddClip(encoded(**HDR, color_trc=PQ), read_as="HDR (PQ) converted to SDR"),
    "hlg.mkv": OddClip(encoded(**HDR, color_trc=HLG), read_as="HDR (HLG) converted to SDR"),
    "ten bit.mkv": OddClip(encoded(codec="ffv1", pix_fmt="yuv422p10le")),
    "full range.mp4": OddClip(encoded(pix_fmt="yuvj420p")),
    "anamorphic.mp4": OddClip(encoded(sample_aspect_ratio=Fraction(64, 45)), read_as="resampled to 137x64"),
    "alpha.mov": OddClip(with_alpha, read_as="transparent parts over black"),
    "interlaced.mp4": OddClip(encoded(options={"x264-params": "tff=1"}), read_as="deinterlaced"),
    "odd size.mkv": OddClip(encoded(frames=texture(FRAMES, 67, 99), codec="ffv1", pix_fmt="yuv444p")),
    "grey.avi": OddClip(encoded(codec="ffv1", pix_fmt="gray")),
    "animation.gif": OddClip(encoded(codec="gif", pix_fmt="rgb8"), read_as="transparent parts over black"),
    "prores.mov": OddClip(encoded(codec="prores_ks", pix_fmt="yuv422p10le")),
    "web.webm": OddClip(encoded(codec="libvpx-vp9")),
    "camera.MTS": OddClip(encoded()),
    "cover art.mp4": OddClip(encoded(cover=True)),
    "small.mp4": OddClip(encoded(frames=texture(FRAMES, 16, 24)), "24x16 pixels do not hold"),
    "short.mp4": OddClip(encoded(frames=texture(3)), "of 3 frames at 24 fps are fewer than data.frames=9"),
    "two sizes.ts": OddClip(of_two_sizes, "the picture size changes within the clip"),
    "cut off.mkv": OddClip(cut_off, "truncated"),
    "damaged.mp4": OddClip(damaged, "is damaged"),
    "unfinished.mp4": OddClip(part(0.5), "its recording, copy or download was not finished"),
    "empty.mp4": OddClip(holding(b""), "it is empty"),
    "text [bold].mp4": OddClip(holding(b"not a video\n" * 50), "it is a text file"),
    "page.mp4": OddClip(holding(b"<!DOCTYPE html><html>404</html>"), "it is a web page"),
    "pointer.mp4": OddClip(holding(b"version https://git-lfs.github.com/spec/v1\n"), "run git lfs pull"),
    "playlist.mp4": OddClip(holding(b"ffconcat version 1.0\nfile plain.mp4\n"), "a list of other files"),
    "stream.mp4": OddClip(holding(b"#EXTM3U\n#EXTINF:1,\nplain.mp4\n"), "a list of other files"),
    "song.mp4": OddClip(sound, "no video stream but cover art"),
    "pipe.mp4": OddClip(os.mkfifo, "a named pipe, not a file"),
    "again.mp4": OddClip(linked("plain.mp4"), "is the same file as"),
    "gone.mp4": OddClip(linked("nowhere.mp4"), "No such file"),
    "round.mp4": OddClip(linked("round.mp4"), "Too many levels of symbolic links"),
    "linked folder/clip.mp4": OddClip(behind_a_link),
    "x [b].mp4": OddClip(encoded()),
    "[h264] new\nline.mp4": OddClip(encoded()),
    os.fsdecode(b"caf\xe9.mp4"): OddClip(encoded()),
    "mark.mp4": OddClip(captioned(CAPTION.encode("utf-8-sig")), caption=CAPTION),
    "notepad.mp4": OddClip(captioned(CAPTION.encode("utf-16")), caption=CAPTION),
    "lines.mp4": OddClip(captioned(b"One.\r\nTwo.\r\n"), caption="One.\nTwo."),
    "windows.mp4": OddClip(captioned(CAPTION.encode("cp1252")), "is not UTF-8 (byte 0x92 at 5)"),
    "nul.mp4": OddClip(captioned(b"A dog.\0"), "holds a NUL character"),
}
NOT_CLIPS = ("._plain.mp4", ".DS_Store", "Thumbs.db", "still.png", "metadata.csv")  # passed over


def write_mixed_clips(folder: Path) -> None:
    """Write all files into a new folder. Some are written to a folder beside it and linked."""
    folder.mkdir(parents=True)
    for name, clip in CLIPS.items():
        clip.write(folder / name)
    for name in NOT_CLIPS:
        (folder / name).write_bytes(b"\0")
    (folder / "plain.txt").mkdir()


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    write_mixed_clips(parser.parse_args().out_dir)


if __name__ == "__main__":
    main()
