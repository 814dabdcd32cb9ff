"""Opening video files: only regular local files, only formats that contain their own pictures, one rule for streams."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from iclora_train.media.clip import probe, read_clip
from iclora_train.media.container import read_encoding
from tests.clips import moving, write_clip


def write_streams(path: Path, *streams: tuple[str, int, Disposition]) -> Path:
    """Write a file with one stream per (codec, number of frames, disposition)."""
    with av.open(str(path), "w") as container:
        opened = []
        for codec, _, disposition in streams:
            stream = container.add_stream(codec, rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.disposition = 64, 48, disposition
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            opened.append(stream)
        for stream, (_, frames, _) in zip(opened, streams, strict=True):
            for rgb in moving(frames, 48, 64):
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=stream.pix_fmt)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def refusal(path: Path) -> str:
    """The message with which a file is refused as a video."""
    with pytest.raises(ValueError, match="cannot be read as a video") as error:
        probe(path)
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_encoding(path)
    return str(error.value)


def test_pipes_devices_and_sockets_are_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
        assert "socket.mp4: cannot be read as a video (No such device" in refusal(tmp_path / "socket.mp4")
    assert "(a named pipe, not a file); give a video file or remove it" in refusal(tmp_path / "pipe.mp4")
    assert "(a folder, not a file)" in refusal(tmp_path / "folder.mp4")
    assert "(Too many levels of symbolic links)" in refusal(tmp_path / "loop.mp4")
    assert "(a device, not a file)" in refusal(tmp_path / "zero.mp4")


def test_an_address_opens_no_connection(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        host = f"127.0.0.1:{server.getsockname()[1]}"
        for address in (f"http://{host}/x.mp4", f"async:http://{host}/x", f"tcp:{host}", f"concat:tcp://{host}|a.mp4"):
            assert "(No such file or directory)" in refusal(Path(address))
        (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile tcp://{host}\n")
        (tmp_path / "play.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ntcp://{host}\n")
        for name in ("list.mp4", "play.mp4"):
            assert "a list of other files, which are not opened" in refusal(tmp_path / name)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_playlist_does_not_open_the_files_that_it_names(tmp_path):
    write_clip(tmp_path / "other.mp4")
    playlists = {
        "concat": "ffconcat version 1.0\nfile other.mp4\nfile other.mp4\n",
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
        "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in playlists.items():
        for suffix in (".mp4", ".m3u8", ".gif"):
            path = tmp_path / (name + suffix)
            path.write_text(text)
            assert "it is a list of other files, which are not opened" in refusal(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer.*run git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "it is a web page"),
        ("un café, pas une vidéo\n".encode("latin-1") * 9, "it is a text file"),
        (b"\0\0\0\x20ftypisom" + bytes(500), "without index: its recording, copy or download was not finished"),
        (bytes(5000), "Invalid data found.*re-encode it"),
    ],
)
def test_the_message_says_what_the_file_is_instead(data, reason, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.mp4: cannot be read as a video \(.*{reason}"):
        probe(path)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "ffv1"), ("webm", "libvpx-vp9"), ("flv", "libx264")])
def test_a_file_that_ends_early_is_truncated(suffix, codec, tmp_path):
    path = write_streams(tmp_path / f"a.{suffix}", (codec, 25, Disposition.default))
    assert probe(path).frames == 25
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    with pytest.raises(ValueError, match=rf"a\.{suffix}: (truncated, the last|frame \d+ is damaged|damaged)"):
        probe(path)


def test_names_are_not_parsed(tmp_path):
    original = write_clip(tmp_path / "a.mp4", 5)
    names = ["file:b.mp4", "a|b.mp4", "take %03d.mp4", "clip [b].mp4", "-i.mp4", "a?b#c.mp4", "no suffix"]
    for path in (*(tmp_path / name for name in names), Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.mp4"))):
        path.write_bytes(original.read_bytes())
        assert probe(path).frames == 5


def test_cover_art_is_not_the_video(tmp_path):
    cover, video = ("mjpeg", 1, Disposition.attached_pic), ("libx264", 9, Disposition.default)
    for order in ((cover, video), (video, cover)):
        path = write_streams(tmp_path / "a.mp4", *order)
        with av.open(str(path)) as container:
            assert len(container.streams.video) == 2
        assert (probe(path).frames, read_encoding(path)) == (9, ("h264", "yuv420p"))


def test_a_song_with_cover_art_has_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=8000), container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 48, "yuvj420p", Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        picture = av.VideoFrame.from_ndarray(moving(1, 48, 64)[0], format="rgb24").reformat(format="yuvj420p")
        for stream, content in ((sound, frame), (cover, picture)):
            container.mux(stream.encode(content))
            container.mux(stream.encode())
    for read in (probe, read_encoding):
        with pytest.raises(ValueError, match=r"song\.mp4: no video stream but cover art; give a video file"):
            read(path)


def test_of_several_videos_the_default_one_is_read(tmp_path):
    plain = Disposition(0)
    streams = [("libx264", 5, plain), ("mpeg4", 9, plain), ("mpeg4", 7, Disposition.default)]
    assert probe(write_streams(tmp_path / "a.mkv", *streams)).frames == 7
    assert probe(write_streams(tmp_path / "b.mkv", *streams[:2])).frames == 5


def test_reading_ends_the_threads_of_a_file(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        next(read_clip(path))
        with pytest.raises(ValueError, match="cannot be read"):
            probe(tmp_path)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
