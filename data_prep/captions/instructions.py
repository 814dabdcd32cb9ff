"""The instructions to the captioner and the phrases that a caption must not contain, by task family.

A caption describes the target, in words that a user writes at inference. It names neither the defect that an adapter
removes nor the control signal that an adapter follows: both reach the model as the reference.
"""

from __future__ import annotations

from iclora_train.config import Config

DESCRIBE = (
    "Describe what happens in two or three plain sentences in the present tense: who or what is seen, what it does, "
    "where, in which light, and how the camera moves if it moves. "
)
STYLE = (
    "Describe the style and the content in two or three plain sentences in the present tense: whether it is filmed, "
    "drawn or rendered, who or what is seen with its colours and materials, what it does, where, and in which light. "
)
ANSWER = (
    "Write only the description, in English, without a heading, a list or an introduction. "
    "Do not mention a video, a picture, a frame or a time. Name only what can be seen."
)
INSTRUCTIONS = {
    "restoration": DESCRIBE
    + "Say nothing about sharpness, noise, resolution or any other technical quality. "
    + ANSWER,
    "colorize": DESCRIBE
    + "Name the colours of the main things. Say nothing about technical quality, or about colour being added. "
    + ANSWER,
    "structure": STYLE
    + "Do not mention drawings of edges, depth maps, skeletons, tracks or any other control signal. "
    + ANSWER,
    "edit": DESCRIBE + ANSWER,
    "style": DESCRIBE
    + "Say nothing about the style or the look of the picture: the caption leaves out what the adapter learns. "
    + ANSWER,
}
BEFORE = "These moments show a scene before an edit:"
AFTER = "These moments show the same scene after the edit:"
BEFORE_AND_AFTER = (
    "Describe the scene after the edit in two or three plain sentences in the present tense. Say what the edit has "
    "added, removed or changed, as it is now. " + ANSWER
)
PAIR_FORM = (
    "Answer in exactly this form, in English, without anything else: Reference shows <the scene before the edit, in "
    "one sentence>. Edited shows <the scene after the edit, in one or two sentences>."
)
SAME_CLIP_FORM = (
    "Answer in exactly this form, in English, without anything else: Reference shows <in a few words, who or what is "
    "seen and what it does, without colours>. Edited shows <who or what is seen, with its colours, what it does, "
    "where, and in which light, in one or two sentences>. Do not mention technical quality."
)

DEFECTS = (
    *("blurry", "blurred", "out of focus", "unfocused", "motion blur", "noisy", "grainy", "film grain", "image noise"),
    *("video noise", "pixelated", "pixelation", "compression artifact", "compression artefact", "blocky", "interlaced"),
    *("scan line", "low resolution", "low quality", "poor quality", "degraded", "distorted", "overexposed"),
)
GREYNESS = (
    *("grayscale", "greyscale", "black and white video", "black and white film", "black and white footage"),
    *("black and white scene", "black and white image", "monochrome", "monochromatic", "colorized", "colourised"),
)


def instruction_for(config: Config, has_reference: bool) -> str:
    """The instruction for a clip: `captioner.instruction`, or the one of the form and the task family."""
    if config.captioner.instruction is not None:
        return config.captioner.instruction
    if config.captioner.form == "edit":
        return PAIR_FORM if has_reference else SAME_CLIP_FORM
    if has_reference:
        return BEFORE_AND_AFTER
    return INSTRUCTIONS[config.task.family]


def shows_reference(config: Config) -> bool:
    """Whether the model sees a supplied reference beside the clip: for edits, and for the form of pairs."""
    return config.task.family == "edit" or config.captioner.form == "edit"


def forbidden_phrases(config: Config) -> tuple[str, ...]:
    """The phrases that a caption must not contain: `captioner.phrases`, or those of the task family."""
    if config.captioner.phrases is not None:
        return tuple(config.captioner.phrases)
    by_family = {"restoration": DEFECTS, "colorize": DEFECTS + GREYNESS, "structure": tuple(config.checks.phrases)}
    return by_family.get(config.task.family, ())
