"""Facts about references that data_prep and eval share: the colour of masks, and the kind of picture of each maker."""

from __future__ import annotations

MASK_COLOUR = (102, 255, 0)  # #66FF00, the colour of masked pixels in the official In-Outpainting adapter

# `task.maker` -> kind of picture. eval derives the kind of other makers from `task.family`.
REFERENCE_KINDS = {
    "control.depth": "depth",
    "control.depth_given": "depth",
    "control.pose": "pose",
    "control.tracks": "tracks",
    "edit.hole": "hole",
    "edit.outpaint": "hole",
    "edit.loop": "hole",
}
