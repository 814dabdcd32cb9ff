"""Quality of a VAE's round trip: PSNR and edge F1 on moving validation photos, drawings and real videos.

python -m scripts.nano.vae_quality --vae DIR --photos DIR [--samples data_prep/samples]

Of the sample clips only the split "train" is read.
"""

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from iclora_train.ltx2.vae.video_vae import VideoVAE
from scripts.nano.motion import MotionClips
from scripts.nano.photos import load_bank


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of uint8 videos (B, 3, F, H, W), mean over clips."""
    error = (a.float() - b.float()).square().mean((1, 2, 3, 4)).clamp(min=0.1)
    return (10 * torch.log10(255**2 / error)).mean().item()


def edges(frame: np.ndarray, drawn: bool) -> np.ndarray:
    """Bool (H, W): Canny 100/200 of a photo (H, W, 3), or the bright pixels of a line drawing."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return grey > 127 if drawn else cv2.Canny(grey, 100, 200) > 0


def edge_f1(result: Tensor, truth: Tensor, drawn: bool = False) -> float:
    """F1 of the edges of uint8 videos (B, 3, F, H, W) within 1 px, mean over clips. Clips without edges are skipped."""
    scores = []
    for pair in zip(result.permute(0, 2, 3, 4, 1).numpy(), truth.permute(0, 2, 3, 4, 1).numpy(), strict=True):
        output, target = (np.stack([edges(np.ascontiguousarray(frame), drawn) for frame in clip]) for clip in pair)
        if not target.any():
            continue
        near_output, near_target = (
            np.stack([cv2.dilate(frame.astype(np.uint8), np.ones((3, 3))) > 0 for frame in clip])
            for clip in (output, target)
        )
        precision = (output & near_target).sum() / max(output.sum(), 1)
        recall = (target & near_output).sum() / target.sum()
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return float(np.mean(scores)) if scores else math.nan


def to_bytes(video: Tensor) -> Tensor:
    """[-1, 1] -> uint8 on the CPU."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def real_clips(files: Sequence[Path], short: int, per_file: int, frames: int = 9, size: int = 64) -> Tensor:
    """uint8 (B, 3, F, size, size): windows spread over each video, scaled to a short edge of `short`, cropped at
    positions that depend only on the number of the window."""
    clips = []
    for file in files:
        video = cv2.VideoCapture(str(file))
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        for i in range(per_file):
            video.set(cv2.CAP_PROP_POS_FRAMES, int((total - frames) * (i + 0.5) / per_file))
            window = np.stack([cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB) for _ in range(frames)])
            scale = short / min(window.shape[1:3])
            window = np.stack([cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in window])
            y, x = (
                int((edge - size) * (0.5 + 0.4 * math.sin(2.4 * i + k))) for k, edge in enumerate(window.shape[1:3])
            )
            clips.append(window[:, y : y + size, x : x + size])  # (F, size, size, 3)
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous()


def drawn_edges(video: Tensor) -> Tensor:
    """Canny maps, white on black, of uint8 (B, 3, F, H, W): the hardest kind of reference for a VAE."""
    maps = [[edges(np.ascontiguousarray(f), False) for f in clip] for clip in video.permute(0, 2, 3, 4, 1).numpy()]
    return torch.from_numpy(np.array(maps)).byte().mul(255)[:, None].expand(-1, 3, -1, -1, -1).contiguous()


@torch.no_grad()
def judge(vae: VideoVAE, sets: dict[str, Tensor]) -> dict[str, float]:
    """PSNR and edge F1 of the round trip of uint8 sets (B, 3, F, H, W). Sets with "lines" in the name are drawings."""
    scores: dict[str, float] = {}
    device = vae.model.device
    for name, truth in sets.items():
        parts = [vae.decode(vae.encode(part.to(device).float() / 127.5 - 1)) for part in truth.split(64)]
        result = to_bytes(torch.cat(parts))
        scores[f"{name} dB"] = round(psnr(result, truth), 2)
        scores[f"{name} F1"] = round(edge_f1(result, truth, "lines" in name), 3)
    return scores


def validation(photos: Path, device: torch.device, real: Sequence[Path]) -> dict[str, Tensor]:
    """Validation sets: moving validation photos, drawings, and real videos at two scales with their edge maps."""
    clips = MotionClips(load_bank(photos, "val").squares.to(device), seed=1)(1024)
    sets = {}
    for name, kinds, count in (("photos", (0, 1, 2), 192), ("shapes", (3,), 40), ("lines", (4,), 40)):  # of CONTENT
        selected = torch.isin(clips.content, torch.tensor(kinds, device=device))
        sets[name] = to_bytes(clips.video[selected][:count])
    for short in (160, 192) if real else ():
        sets[f"real {short}"] = real_clips(real, short, 6)
    if real:
        sets["real lines"] = drawn_edges(sets["real 160"])
    return sets


def load_vae(folder: Path) -> VideoVAE:
    """The VAE in fp32, from the files `vae-*.safetensors` of train_vae."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("vae-*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            config = json.loads(opened.metadata()["config"])["vae"]
            state |= {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118 (not a dict)
    return VideoVAE.from_config(config, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder of vae-*.safetensors")
    parser.add_argument("--photos", type=Path, required=True, help="folder with photos.csv")
    parser.add_argument("--samples", type=Path, help="folder with clips.csv")
    args = parser.parse_args()
    files = []
    if args.samples is not None:
        with (args.samples / "clips.csv").open(newline="") as table:
            files = [args.samples / row["file"] for row in csv.DictReader(table) if row["split"] == "train"]
    vae = load_vae(args.vae)
    for name, score in judge(vae, validation(args.photos, torch.device("cpu"), files)).items():
        print(f"{name:16s} {score}")


if __name__ == "__main__":
    main()
