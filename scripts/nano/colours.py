"""Colour words for the caption of a clip."""

import torch
from torch import Tensor

PALETTE = {  # typical RGB of a colour word
    "black": (0.06, 0.06, 0.06),
    "grey": (0.5, 0.5, 0.5),
    "white": (0.94, 0.94, 0.94),
    "red": (0.72, 0.14, 0.14),
    "orange": (0.9, 0.5, 0.15),
    "brown": (0.42, 0.29, 0.18),
    "beige": (0.82, 0.7, 0.54),
    "yellow": (0.9, 0.8, 0.2),
    "green": (0.3, 0.5, 0.2),
    "blue": (0.25, 0.4, 0.75),
    "purple": (0.5, 0.25, 0.6),
    "pink": (0.9, 0.6, 0.7),
}
TO_YCC = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))  # BT.601
LUMA_WEIGHT = 0.3  # weight of brightness in the distance, relative to chroma
MUTED = 0.6  # chroma of a red object in a photo relative to PALETTE's red: photos are less colourful than colour words
MOST = 3  # words per clip
SHARE = (0.25, 0.08)  # a colour is named from this share of the pixels on: black, grey and white; all other colours


def colour_words(video: Tensor) -> list[list[str]]:
    """Colour words for each clip of video (B,3,F,H,W) in [-1, 1], largest share first."""
    pixels = video[:, :, :: max(1, video.shape[2] - 1), ::4, ::4].flatten(2).mT.float() / 2 + 0.5  # (B,P,3)
    to_ycc = pixels.new_tensor(TO_YCC).T * pixels.new_tensor([LUMA_WEIGHT, 1.0, 1.0])
    palette = pixels.new_tensor(list(PALETTE.values())) @ to_ycc * pixels.new_tensor([1.0, MUTED, MUTED])
    nearest = torch.cdist(pixels @ to_ycc, palette.expand(len(pixels), -1, -1)).argmin(-1)  # (B,P)
    share = torch.nn.functional.one_hot(nearest, len(PALETTE)).float().mean(1)  # (B,K)
    least = share.new_tensor([SHARE[0]] * 3 + [SHARE[1]] * (len(PALETTE) - 3))
    order = share.argsort(dim=1, descending=True)[:, :MOST]
    is_named = (share >= least).gather(1, order)
    names = list(PALETTE)
    return [
        [names[i] for i, named in zip(indices, flags, strict=True) if named]
        for indices, flags in zip(order.tolist(), is_named.tolist(), strict=True)
    ]
