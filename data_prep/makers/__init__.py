"""Pair makers: what turns a target into the reference an adapter is to follow. `task.maker` names one."""

from data_prep.makers.base import Maker, SourceWindow, build_maker, register
from data_prep.makers.control.canny import Canny
from data_prep.makers.control.depth import Depth, DepthGiven
from data_prep.makers.control.optical_flow import OpticalFlow
from data_prep.makers.control.pose import Pose
from data_prep.makers.control.soft_edges import SoftEdges
from data_prep.makers.control.tracks import Tracks
from data_prep.makers.degrade.blur import Defocus, Gaussian, Motion
from data_prep.makers.degrade.chain import Chain, LowResolution, OneOf
from data_prep.makers.degrade.codec import Codec, Jpeg
from data_prep.makers.degrade.colour import Grey
from data_prep.makers.degrade.exposure import Exposure
from data_prep.makers.degrade.interlace import Interlace
from data_prep.makers.degrade.noise import Grain, Noise, Shot
from data_prep.makers.degrade.resize import Resize
from data_prep.makers.edit.edits import Hole, Loop, Outpaint
from data_prep.makers.given import Given
from data_prep.makers.union import Union

__all__ = [
    "Canny",
    "Chain",
    "Codec",
    "Defocus",
    "Depth",
    "DepthGiven",
    "Exposure",
    "Gaussian",
    "Given",
    "Grain",
    "Grey",
    "Hole",
    "Interlace",
    "Jpeg",
    "Loop",
    "LowResolution",
    "Maker",
    "Motion",
    "Noise",
    "OneOf",
    "OpticalFlow",
    "Outpaint",
    "Pose",
    "Resize",
    "Shot",
    "SoftEdges",
    "SourceWindow",
    "Tracks",
    "Union",
    "build_maker",
    "register",
]
