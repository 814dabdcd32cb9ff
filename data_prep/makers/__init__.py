"""Pair makers: what turns a target into the reference an adapter is to follow. `task.maker` names one."""

from data_prep.makers.control import Canny, Given
from data_prep.makers.degrade import Defocus, Gaussian, Grey, Motion
from data_prep.makers.maker import Maker, make, register

__all__ = ["Canny", "Defocus", "Gaussian", "Given", "Grey", "Maker", "Motion", "make", "register"]
