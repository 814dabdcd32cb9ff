"""Facts about references that data_prep and eval share: the mask colour, and what kind of picture each maker makes."""

from __future__ import annotations

MASK_COLOUR = (102, 255, 0)  # #66FF00, the colour of masked pixels in the official In-Outpainting adapter

# `task.maker` -> kind of picture. eval has no synthetic probes for the makers missing here: control.flow, edit.loop,
# edit.frame.
REFERENCE_KINDS = {
    "control.canny": "edges",
    "control.soft_edges": "edges",
    "control.depth": "depth",
    "control.depth_given": "depth",
    "control.pose": "pose",
    "control.tracks": "tracks",
    "union": "edges",  # one of several controls per window; the probes draw edges
    "edit.hole": "hole",
    "edit.outpaint": "hole",
    "given": "given",
    "degrade.chain": "degraded",
    "degrade.codec": "degraded",
    "degrade.defocus": "degraded",
    "degrade.exposure": "degraded",
    "degrade.gaussian": "degraded",
    "degrade.grain": "degraded",
    "degrade.grey": "degraded",
    "degrade.interlace": "degraded",
    "degrade.jpeg": "degraded",
    "degrade.low_resolution": "degraded",
    "degrade.motion": "degraded",
    "degrade.noise": "degraded",
    "degrade.one_of": "degraded",
    "degrade.resize": "degraded",
    "degrade.shot": "degraded",
}
