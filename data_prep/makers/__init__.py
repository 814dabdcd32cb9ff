"""Pair makers: what turns a target into the reference an adapter is to follow. `task.maker` names one."""

from data_prep.makers.blur import Defocus, Gaussian, Motion
from data_prep.makers.canny import Canny
from data_prep.makers.chain import Chain, LowResolution, OneOf
from data_prep.makers.codec import Codec, Jpeg
from data_prep.makers.colour import Grey
from data_prep.makers.depth import Depth, DepthGiven
from data_prep.makers.edit import Hole, Loop, Outpaint
from data_prep.makers.exposure import Exposure
from data_prep.makers.flow import OpticalFlow
from data_prep.makers.given import Given
from data_prep.makers.interlace import Interlace
from data_prep.makers.maker import Maker, Source, make, register
from data_prep.makers.noise import Grain, Noise, Shot
from data_prep.makers.pose import Pose
from data_prep.makers.resize import Resize
from data_prep.makers.soft_edges import SoftEdges
from data_prep.makers.tracks import Tracks
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
    "Source",
    "Tracks",
    "Union",
    "make",
    "register",
]
