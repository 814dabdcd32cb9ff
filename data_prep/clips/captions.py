"""The text that the model reads for a clip: trigger and caption as the task combines them."""

from __future__ import annotations

from data_prep.clips.clip_list import Clip
from iclora_train.config import Config
from iclora_train.data.prompts import fill_template, with_trigger


def caption_of(clip: Clip, config: Config) -> str:
    """The text that the model reads for a clip: data.prompt filled with the columns of its row, or trigger and caption.

    ValueError if the row lacks a column that data.prompt names.
    """
    trigger, template = config.task.trigger, config.data.prompt
    if template is None:
        return with_trigger(trigger, clip.caption)
    return fill_template(template, {**clip.row, "caption": clip.caption, "trigger": trigger})
