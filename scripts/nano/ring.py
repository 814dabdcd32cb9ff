"""Ring buffer of captioned latents on the GPU. New clips are generated and encoded, and replace the oldest ones."""

from __future__ import annotations

import torch
from torch import Tensor

from iclora_train.ltx2.text.nano_encoder import NanoTextEncoder
from iclora_train.ltx2.vae.video_vae import VideoVAE
from scripts.nano.colours import colour_words
from scripts.nano.motion import CAMERA, CONTENT, Clips, MotionClips


def captions(clips: Clips, subjects: list[str]) -> list[str]:
    """Short captions: subject of the photo, colours, passing objects, camera motion.

    A tenth are empty, half name no subject and two fifths no colour, so that the model does not depend on either.
    """
    colours = colour_words(clips.video)
    passing = {"objects": "things passing in front", "waves": "rippling", "outlines": "line drawing"}
    rows = zip(*(v.tolist() for v in clips[1:]), strict=True)
    result = []
    for i, (photo, camera, content, grey, soft) in enumerate(rows):
        kind = CONTENT[content]
        subject = subjects[photo] if i % 2 else "a photo"
        words = ["flat shapes and lines moving"] if kind == "shapes" else [subject, passing.get(kind, "")]
        words += [" and ".join(colours[i]) if i % 5 > 1 else ""]
        words += [f"camera {CAMERA[camera]}", "black and white" if grey else "", "out of focus" if soft else ""]
        result.append("" if i % 10 == 0 else ", ".join(word for word in words if word))
    return result


class Ring:
    """Latents (ring, C, f, h, w) and token ids, filled once, then replaced a few clips at a time."""

    def __init__(
        self, clips: MotionClips, vae: VideoVAE, text: NanoTextEncoder, subjects: list[str], size: int
    ) -> None:
        self.clips, self.vae, self.text, self.subjects, self.next = clips, vae, text, subjects, 0
        latent, ids = self.make(8)
        self.latent = latent.new_empty(size, *latent.shape[1:], dtype=torch.float16)
        self.ids = ids.new_empty(size, ids.shape[1])

    @torch.no_grad()
    def make(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` new clips as latents (n,C,f,h,w) and token ids (n,T)."""
        clips = self.clips(count)
        with torch.autocast(clips.video.device.type, torch.bfloat16):
            latent = self.vae.encode(clips.video)
        return latent.float(), self.text.tokenize(captions(clips, self.subjects)).to(latent.device)

    def renew(self, count: int) -> None:
        """Replace the oldest `count` clips."""
        place = (torch.arange(count) + self.next) % len(self.latent)
        latent, ids = self.make(count)
        self.latent[place], self.ids[place] = latent.half(), ids
        self.next = int((place[-1] + 1) % len(self.latent))

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """A random batch of latents (B,C,f,h,w) and token ids (B,T)."""
        pick = torch.randint(len(self.latent), (batch,), device=self.latent.device)
        return self.latent[pick].float(), self.ids[pick]
