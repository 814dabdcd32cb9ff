"""The frames of a video, window by window. Finished windows are on disk, so that a killed run continues."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.regular_files import read_regular
from iclora_train.generate.stages import Stage
from iclora_train.generate.windows import Window, join_windows
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.pixels import to_uint8


class Video:
    """Decodes windows and joins them. The VAE is on `device` only while it works.

    folder: of finished windows; None for a video of one window, which is not stored.
    """

    def __init__(self, vae: VideoVAE, device: torch.device, windows: Sequence[Window], folder: Path | None) -> None:
        self.windows, self.finished = windows, 0  # number of finished windows
        self._vae, self._device, self._folder = vae, device, folder
        self._frames: np.ndarray | None = None
        while self.finished < len(windows) and folder is not None and self._file(folder).is_file():
            self._join(load(read_regular(self._file(folder)))["frames"])

    def _file(self, folder: Path) -> Path:
        """Of the next window."""
        return folder / f"{self.finished:04d}.safetensors"

    @property
    def frames(self) -> np.ndarray:
        """uint8 RGB (F,H,W,3) of the finished windows."""
        assert self._frames is not None
        return self._frames

    def add(self, latent: Tensor) -> None:
        """Decode the latents (1,C,f,h,w) of the next window."""
        frames = to_frames(self._vae.to(self._device), latent)
        self._vae.cpu()
        if self._folder is not None:
            with write_atomic(self._file(self._folder)) as file:
                file.write(save({"frames": np.ascontiguousarray(frames)}))  # save() reads memory in order
        self._join(frames)

    def add_frames(self, frames: np.ndarray) -> None:
        """Add the frames (F,H,W,3) of the next window, which are kept unchanged."""
        self._join(frames)

    def _join(self, frames: np.ndarray) -> None:
        window = self.windows[self.finished]
        self._frames = frames if self._frames is None else join_windows(self._frames, frames, window.carried)
        self.finished += 1

    def begin(self, window: Window, stages: Sequence[Stage]) -> Sequence[Stage]:
        """The stages of a window with the frames that are carried from the window before."""
        if not window.carried:
            return stages
        carried, vae = self.frames[window.start :], self._vae.to(self._device)
        begun = [stage.with_carried(carried, vae) for stage in stages]
        vae.cpu()
        return begun

    def forget(self) -> None:
        """Remove the finished windows from disk."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


@torch.inference_mode()
def to_frames(vae: VideoVAE, latent: Tensor) -> np.ndarray:
    """Latents (1,C,f,h,w) -> uint8 RGB (F,H,W,3)."""
    return to_uint8(vae.decode(latent))[0].cpu().numpy()
