"""Read texts that people wrote: captions and lists, in UTF-8, or in UTF-16 with a byte order mark."""

from __future__ import annotations

import codecs
from pathlib import Path

from iclora_train.core.regular_files import read_regular

CAPTION_SUFFIXES = (".txt", ".TXT", ".caption")  # in this order; `.caption` is the default of kohya's trainers
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path) -> str:
    """The text of a file with `\\n` as line ends and without byte order marks.

    ValueError names the file and the remedy if it is in another encoding or not a text. OSError as in `read_regular`.
    """
    data = read_regular(path)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {encoding.upper()} (byte 0x{data[error.start]:02x} at {error.start}): save it as UTF-8 "
            "(iconv -f WINDOWS-1252 -t UTF-8 if an editor on Windows wrote it)"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} holds a NUL character at {text.index(chr(0))}: save it as UTF-8 text")
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


def caption_beside(video: Path) -> str:
    """The text of the first non-empty caption file next to a video: `a.txt` for `a.mp4` (see CAPTION_SUFFIXES), or "".

    ValueError if such a file cannot be read.
    """
    for suffix in CAPTION_SUFFIXES:
        path = video.with_suffix(suffix)
        try:
            text = "" if path.is_dir() else read_text(path).strip()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"its caption {path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ValueError(f"its caption {error}") from error
        if text:
            return text
    return ""
