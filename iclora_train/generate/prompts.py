"""The prompt of each window of a video: trigger and template as in training, one text for all windows or several."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.config import require
from iclora_train.config.paths import user_path
from iclora_train.data.prompts import TEMPLATE_KEY, extra_fields, fill_template, with_trigger
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.windows import Window
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text_features import TextFeatures


class PromptFeatures(NamedTuple):
    """Features of a prompt: of the video stream (1,T,D), and of the audio stream (1,T,D') where that is sampled."""

    video: Tensor
    audio: Tensor | None


def read_text_features(
    settings: GenerateSettings, base: BaseModel, prompts: Sequence[str], device: torch.device, audio: bool
) -> tuple[list[PromptFeatures], PromptFeatures]:
    """Features of the prompt of each window and of the negative prompt. Features in the cache are not encoded again.

    audio: with those of the audio stream.
    """
    cache = TextFeatures(user_path(settings.cache), base, audio)
    guided = settings.sample.guidance > 1 or (audio and settings.sample.audio_scales.guidance > 1)
    captions = [*prompts, settings.negative_prompt] if guided else list(prompts)
    cache.encode_missing(captions, device)
    features = {
        caption: PromptFeatures(
            cache.read(caption)[None].to(device), cache.read_audio(caption)[None].to(device) if audio else None
        )
        for caption in dict.fromkeys(captions)
    }
    return [features[prompt] for prompt in prompts], features[captions[-1]]


def window_prompts(
    settings: GenerateSettings, adapter: Adapter, base: BaseModel, windows: Sequence[Window]
) -> list[str]:
    """The whole prompt of each window.

    Without `prompt_frames` window i has text i, and the last text holds for all windows after it, as in ComfyUI's
    looping sampler. With `prompt_frames` text i begins at frame i of that list, and a window has the text that holds
    for most of the frames that it makes new; of two with equally many, the earlier.

    ConfigError when an LTX base gets no prompt, and when texts and windows do not fit.
    """
    needs_prompt = "text" not in base.checkpoint.components
    texts = settings.prompts
    require(
        all(text.strip() for text in texts) or not needs_prompt,
        f'prompt is not set: {base.name} needs a description of the video, e.g. prompt="a dog runs on a beach"'
        if len(texts) == 1
        else f"prompt={texts}: text {_first_empty(texts)} is empty: {base.name} needs a description of every window",
    )
    numbers = _by_window(len(texts), windows) if settings.prompt_frames is None else _by_frame(settings, windows)
    whole = [full_prompt(text, adapter) for text in texts]
    return [whole[number] for number in numbers]


def _first_empty(texts: Sequence[str]) -> int:
    """The number of the first empty text, from 1; 0 if none is empty."""
    return next((number for number, text in enumerate(texts, 1) if not text.strip()), 0)


def full_prompt(text: str, adapter: Adapter) -> str:
    """A text with the adapter's trigger before it, or filled into the adapter's template, as in training.

    A template with more fields than caption and trigger is not filled: the user writes the prompt in the form of the
    template.
    """
    trigger, template = adapter.metadata.get("trigger", ""), adapter.metadata.get(TEMPLATE_KEY)
    if template is None or extra_fields(template) or not text.strip():
        return with_trigger(trigger, text)
    return fill_template(template, {"caption": text, "trigger": trigger})


def describe_prompts(prompts: Sequence[str], windows: Sequence[Window]) -> list[str]:
    """A line for each prompt of a video with several: `frames 0 to 32: 'a dog runs'`."""
    if len(set(prompts)) == 1:
        return []
    begins = [i for i in range(len(prompts)) if i == 0 or prompts[i] != prompts[i - 1]]
    ends = [windows[i - 1].end for i in begins[1:]] + [windows[-1].end]
    starts = [windows[i].start + windows[i].carried for i in begins]
    return [f"frames {start} to {end - 1}: {prompts[i]!r}" for i, start, end in zip(begins, starts, ends, strict=True)]


def _by_window(count: int, windows: Sequence[Window]) -> list[int]:
    """The number of the text of each window."""
    require(
        count == 1 or len(windows) > 1,
        f"prompt has {count} texts, and the video is made in one piece: set window_frames for a video in windows, or "
        "give one text; one that begins and ends with brackets needs quotes: prompt=\"'[...]'\"",
    )
    require(
        count <= len(windows),
        f"prompt has {count} texts, and the video has {len(windows)} windows: give at most one for each (the last one "
        "holds for the windows after it), or shorter windows (window_frames, window_overlap)",
    )
    return [min(i, count - 1) for i in range(len(windows))]


def _by_frame(settings: GenerateSettings, windows: Sequence[Window]) -> list[int]:
    """The number of the text of each window, from the frames at which the texts begin."""
    frames, listed = windows[-1].end, settings.prompt_frames
    begins = [frame if frame >= 0 else frames + frame for frame in listed]
    rule = "give rising frames of the video, the first one 0; a negative frame counts from the end"
    outside = next((frame for frame, begin in zip(listed, begins, strict=True) if not 0 <= begin < frames), None)
    require(outside is None, f"prompt_frames={listed}: the video has no frame {outside}, only {frames} frames; {rule}")
    require(begins[0] == 0, f"prompt_frames={listed}: the first text begins at frame {begins[0]}; {rule}")
    falling = next((b for a, b in pairwise(begins) if b <= a), None)
    require(falling is None, f"prompt_frames={listed}: frame {falling} is not after the frame before it; {rule}")
    spans = list(zip(begins, [*begins[1:], frames], strict=True))
    numbers = []
    for window in windows:
        new = window.start + window.carried
        shares = [min(end, window.end) - max(begin, new) for begin, end in spans]
        numbers.append(shares.index(max(shares)))
    spans_of_windows = ", ".join(f"{window.start + window.carried} to {window.end - 1}" for window in windows)
    unused = next((number for number in range(len(spans)) if number not in numbers), None)
    require(
        unused is None,
        f"prompt_frames={listed}: no window has the text that begins at frame {listed[unused or 0]}, because no window "
        f"makes most of its new frames there; the windows make frames {spans_of_windows}: let a text begin where a "
        "window does, or set window_frames",
    )
    return numbers
