"""The colours that a clip shows, as words for its caption."""

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
LUMA_WEIGHT = 0.3  # how much brightness counts in the distance, against chroma
MUTED = 0.6  # chroma of what is called red, of that in PALETTE: the world is less colourful than its words
MOST = 3  # words of a clip
SHARE = (0.25, 0.08)  # of the pixels that make a colour worth a word: black, grey and white; all others


def colour_words(video: Tensor) -> list[list[str]]:
    """The words for each clip of video (B,3,F,H,W) in [-1, 1], what covers most first."""
    pixels = video[:, :, :: max(1, video.shape[2] - 1), ::4, ::4].flatten(2).mT.float() / 2 + 0.5  # (B,P,3)
    to_ycc = pixels.new_tensor(TO_YCC).T * pixels.new_tensor([LUMA_WEIGHT, 1.0, 1.0])
    palette = pixels.new_tensor(list(PALETTE.values())) @ to_ycc * pixels.new_tensor([1.0, MUTED, MUTED])
    nearest = torch.cdist(pixels @ to_ycc, palette.expand(len(pixels), -1, -1)).argmin(-1)  # (B,P)
    share = torch.nn.functional.one_hot(nearest, len(PALETTE)).float().mean(1)  # (B,K)
    least = share.new_tensor([SHARE[0]] * 3 + [SHARE[1]] * (len(PALETTE) - 3))
    order = share.argsort(dim=1, descending=True)[:, :MOST]
    seen = (share >= least).gather(1, order)
    names = list(PALETTE)
    return [
        [names[i] for i, there in zip(row, kept, strict=True) if there]
        for row, kept in zip(order.tolist(), seen.tolist(), strict=True)
    ]
