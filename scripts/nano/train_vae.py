"""Train nano's video VAE on moving photos for a given time: python -m scripts.nano.train_vae --seconds 540 ...

Loss: L1, squared error, finite differences in space and time, and the fine Haar bands of the error. Noise on the
latents makes the decoder robust. A penalty on latent channels whose mean is not 0 or whose std is not 1 fixes the scale
of the latents relative to this noise. Under torchrun every rank generates its own clips and gradients are averaged.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from iclora_train.ltx2.base_model import split_by_size
from iclora_train.ltx2.vae.video_vae import VideoVAE
from scripts.nano.motion import MotionClips
from scripts.nano.muon import Muon
from scripts.nano.photos import load_bank
from scripts.nano.team import Team
from scripts.nano.vae_quality import judge, validation

SHARD = 15 * 2**20  # bytes


@dataclass
class VAETraining:
    """Settings of the training. The loss weights are relative to L1."""

    batch: int = 64  # clips per step and device
    ahead: int = 8  # batches generated at once
    lr: float = 2e-3
    warmup: int = 100  # steps
    noise: float = 0.1  # largest std of the noise on the latents of a clip
    squared: float = 5.0  # weight of the squared error
    slopes: float = 0.5  # weight of the L1 of finite differences in space and time
    fine: float = 0.5  # weight of the L1 of the fine Haar bands
    spread: float = 0.02  # weight of the penalty on latent channels
    ema: float = 0.999  # decay of the moving average of the weights
    pace: int = 25  # steps between two reads of the clock and the loss
    judge: float = 60.0  # seconds between validations
    channels_last: bool = True
    compile: bool = True
    seed: int = 0


def nano_config(channels: int) -> dict[str, Any]:
    """nano's VAE as the `vae` section of an official checkpoint: 8x8x4, blocks listed from the pixels inwards."""
    return {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": channels,
        "patch_size": 4,
        "encoder_blocks": [
            ["res_x", {"num_layers": 2}],
            ["compress_time_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 2}],
            ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}],
        ],
        "decoder_blocks": [
            ["res_x", {"num_layers": 2}],
            ["compress_time", {"multiplier": 1}],
            ["res_x", {"num_layers": 2}],
            ["compress_all", {"multiplier": 2, "residual": True}],
            ["res_x", {"num_layers": 1}],
        ],
        "decoder_base_channels": 96,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "causal_decoder": False,
        "timestep_conditioning": False,
        "encoder_spatial_padding_mode": "zeros",
        "spatial_padding_mode": "zeros",
    }


class RoundTrip(nn.Module):
    """The module to compile: video (B,3,F,H,W) -> loss per clip (B) and latents (B,C,f,h,w)."""

    def __init__(self, vae: VideoVAE, cfg: VAETraining):
        super().__init__()
        self.model, self.channels, self.cfg = vae.model, vae.channels, cfg

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.model.encoder(video)[:, : self.channels]  # (B, C, f, h, w)
        strength = self.cfg.noise * torch.rand(len(video), 1, 1, 1, 1, device=video.device)
        error = self.model.decoder(latent + strength * torch.randn_like(latent)).float() - video  # (B, 3, F, H, W)
        return self.reconstruction(error) + self.cfg.spread * spread(latent.float()), latent

    def reconstruction(self, error: Tensor) -> Tensor:
        """The weighted sum of the reconstruction losses of each clip (B), from its error (B,3,F,H,W)."""
        mean = (1, 2, 3, 4)
        loss = error.abs().mean(mean) + self.cfg.squared * error.square().mean(mean)
        slopes = sum(error.diff(dim=axis).abs().mean(mean) for axis in (2, 3, 4))
        even, odd = error[..., ::2], error[..., 1::2]
        left, right = (even - odd) / 2, (even + odd) / 2
        fine = left.abs().mean(mean) + (right[..., ::2, :] - right[..., 1::2, :]).abs().mean(mean) / 2
        return loss + self.cfg.slopes * slopes + self.cfg.fine * fine


def spread(latent: Tensor) -> Tensor:
    """Squared deviation of the channels of latents (B, C, f, h, w) from mean 0 and std 1 over the batch."""
    std, mean = torch.std_mean(latent, dim=(0, 2, 3, 4))  # (C)
    return (mean.square() + (std - 1).square()).mean()


class Trainer:
    """Weights, their moving average and the optimizers: everything in a checkpoint."""

    def __init__(self, vae: VideoVAE, cfg: VAETraining, team: Team):
        self.vae, self.cfg, self.team, self.step = vae, cfg, team, 0
        self.ema = copy.deepcopy(vae).requires_grad_(False)
        self.params = list(vae.parameters())
        outer = ("conv_in", "conv_out")  # layers at pixels and latents are not hidden matrices
        hidden = [p for name, p in vae.named_parameters() if p.ndim > 1 and not any(layer in name for layer in outer)]
        rest = [p for p in self.params if all(p is not h for h in hidden)]
        self.optimizers = [Muon(hidden, cfg.lr), torch.optim.AdamW(rest, cfg.lr, betas=(0.9, 0.98), weight_decay=0.0)]
        trip = RoundTrip(vae, cfg)
        self.trip = torch.compile(trip, dynamic=False) if cfg.compile else trip

    def train(self, video: Tensor, progress: float) -> Tensor:
        """One step on (B, 3, F, H, W) at `progress` 0..1 of the time. Returns the loss."""
        rate = self.cfg.lr * min((self.step + 1) / self.cfg.warmup, 1.0) * max(1.0 - progress, 0.0)
        with torch.autocast(video.device.type, torch.bfloat16):
            loss = self.trip(video)[0].mean()
        loss.backward()
        grads = [p.grad for p in self.params if p.grad is not None]
        self.team.average(grads)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        decay = min(self.cfg.ema, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.ema.parameters()), [p.detach() for p in self.params], 1 - decay)
        return loss.detach()

    def state(self) -> dict[str, Tensor]:
        """All tensors under flat names."""
        tensors = {f"vae.{key}": value for key, value in self.vae.state_dict().items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in moments.items()}
        return {key: value.contiguous() for key, value in tensors.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, module in (("vae.", self.vae), ("ema.", self.ema)):
            module.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                kind, *place = key.split(".")
                if kind == "optimizer" and int(place[0]) == i:
                    state.setdefault(int(place[1]), {})[place[2]] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def stream(source: MotionClips, cfg: VAETraining) -> Iterator[Tensor]:
    """Endless batches (B, 3, F, H, W), several generated at once."""
    while True:
        yield from source(cfg.batch * cfg.ahead).video.split(cfg.batch)


@torch.no_grad()
def measure_latents(vae: VideoVAE, source: MotionClips, clips: int = 4096) -> None:
    """Set the VAE's latent mean and std per channel, measured on `clips` clips."""
    latents = [vae.model.encoder(source(256).video)[:, : vae.channels] for _ in range(-(-clips // 256))]
    std, mean = torch.std_mean(torch.cat(latents).double(), dim=(0, 2, 3, 4))  # (C)
    vae.model.latents_mean.copy_(mean)
    vae.model.latents_std.copy_(std)


class Logbook:
    """Output of rank 0: losses, scores and files in `out_dir`, and the state to resume from in the file `state`."""

    def __init__(self, trainer: Trainer, sets: dict[str, Tensor], out_dir: Path, state: Path | None):
        self.trainer, self.sets, self.out_dir, self.state = trainer, sets, out_dir, state
        self.judged = 0.0
        self.scores: dict[str, float] = {}
        out_dir.mkdir(parents=True, exist_ok=True)

    def write(self, **entry: Any) -> None:
        line = json.dumps({"step": self.trainer.step, **entry})
        print(line, flush=True)
        with (self.out_dir / "vae_log.jsonl").open("a") as log:
            log.write(line + "\n")

    def judge(self, seconds: float) -> None:
        """Measure the moving average and save the state."""
        self.judged = seconds
        self.scores = judge(self.trainer.ema, self.sets)
        self.write(seconds=round(seconds, 1), **self.scores)
        if self.state is not None:
            counts = {"seconds": torch.tensor(seconds), "step": torch.tensor(self.trainer.step)}
            save_file(self.trainer.state() | counts, self.state)

    def export(self, seconds: float) -> None:
        """Write the weights with official keys in fp16 files of at most SHARD bytes with the config, and a report."""
        vae = self.trainer.ema
        state = {key: tensor.half().contiguous().cpu() for key, tensor in vae.official_state().items()}
        shards = split_by_size(state, SHARD)
        for i, shard in enumerate(shards):
            name = f"vae-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, self.out_dir / name, {"config": json.dumps({"vae": vae.cfg})})
        report = {"vae": vae.cfg, "training": asdict(self.trainer.cfg), "ranks": self.trainer.team.size}
        report |= {"steps": self.trainer.step, "seconds": round(seconds, 1), "scores": self.scores}
        (self.out_dir / "vae.json").write_text(json.dumps(report, indent=1))


def train_vae(
    cfg: VAETraining,
    model: dict[str, Any],
    photos: Path,
    out_dir: Path,
    seconds: float,
    real: Sequence[Path] = (),
    state: Path | None = None,
) -> VideoVAE:
    """Train for `seconds` of wall time, including set-up and compilation. Final validation and export take 15 s more.

    model: an official `vae` section. photos: the folder of photos.csv. real: videos for validation. state: the file
    that the training state is saved to and resumed from. FloatingPointError on a loss that is not finite.
    """
    start, done, team = time.monotonic(), 0.0, Team()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(cfg.seed)  # the same weights on every rank
    trainer = Trainer(VideoVAE(model).to(team.device), cfg, team)
    if state is not None and state.exists():
        tensors = load_file(state)
        done, trainer.step = tensors.pop("seconds").item(), int(tensors.pop("step"))
        trainer.load(tensors)
    seed = 1000 * (cfg.seed + trainer.step) + team.rank + 2  # different clips and noise on every rank
    torch.manual_seed(seed)
    source = MotionClips(load_bank(photos, "train").squares.to(team.device), seed=seed)
    book = Logbook(trainer, validation(photos, team.device, real), out_dir, state) if team.rank == 0 else None
    loss, elapsed, before = torch.zeros(()), done, (trainer.step, time.monotonic())
    for video in stream(source, cfg):
        if trainer.step % cfg.pace == 0:
            elapsed = team.from_first(done + time.monotonic() - start)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is {loss.item()} at step {trainer.step}")
            if elapsed >= seconds:
                break
            if book is not None:
                now = (trainer.step, time.monotonic())
                rate = (now[0] - before[0]) / (now[1] - before[1])
                before = now
                book.write(seconds=round(elapsed, 1), loss=round(loss.item(), 5), steps_per_s=round(rate, 2))
                if elapsed - book.judged >= cfg.judge:
                    book.judge(elapsed)
        loss = trainer.train(video, elapsed / seconds)
    measure_latents(trainer.ema, source)
    if book is not None:
        book.judge(elapsed)
        book.export(elapsed)
    return trainer.ema


def main() -> None:
    """Command line: one flag for every setting of VAETraining, and the paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with photos.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the log")
    parser.add_argument("--seconds", type=float, required=True, help="wall time of the training")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="videos for validation")
    parser.add_argument("--state", type=Path, help="file to resume from and to save to")
    parser.add_argument("--channels", type=int, default=64, help="latent channels")
    for name, value in asdict(VAETraining()).items():
        kind = (lambda text: text == "true") if isinstance(value, bool) else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value)
    args = parser.parse_args()
    cfg = VAETraining(**{name: getattr(args, name) for name in asdict(VAETraining())})
    train_vae(cfg, nano_config(args.channels), args.photos, args.out, args.seconds, args.real, args.state)


if __name__ == "__main__":
    main()
