"""Train the transformer of `nano` from scratch: text to video and first frame to video, on moving photos.

Clips are generated and encoded on the GPU and stored in a ring buffer of latents, from which batches are drawn while
the buffer is refilled. A third of the clips is trained from text alone, a third with a clean first latent frame, a
third with random clean tokens. The base is never trained with references: an IC-LoRA learns to use them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from iclora_train.config import Flow
from iclora_train.core.types import Tokens
from iclora_train.diffusion.flow_matching import add_noise, masked_loss, sample_sigma, target_velocity
from iclora_train.diffusion.noise_schedule import sigma_schedule
from iclora_train.diffusion.reference import target_tokens, to_tokens
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.text.nano_encoder import NanoTextConfig, NanoTextEncoder
from iclora_train.ltx2.vae.video_vae import VideoVAE
from scripts.nano.muon import Muon
from scripts.nano.ring import Ring
from scripts.nano.team import Team

FPS = 25.0
CHUNK = 16  # steps between two refills of the ring buffer
RECORD_AFTER = 5  # eager steps before CUDA graph capture: they compile and create the optimizer states
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # of the validation loss


@dataclass
class BaseTraining:
    """Sizes and schedule. Times are seconds of wall time."""

    width_heads: int = 5  # heads of 64 channels
    layers: int = 8
    batch: int = 256
    fresh: int = 12  # clips replaced in the ring buffer per step, CHUNK steps at a time
    rate: float = 1e-3
    warmup: int = 500
    decay_from: float = 0.5  # share of the time after which the learning rate decays linearly to 0
    decay: float = 0.05  # weight decay of the blocks' matrices
    ema: float = 0.9995
    clip: float = 1.0
    compile: bool = True
    seed: int = 0


def transformer_config(cfg: BaseTraining, channels: int) -> dict[str, object]:
    """The `transformer` section of the checkpoint: LTX-2.3's switches at small sizes."""
    width = cfg.width_heads * 64
    return {
        "num_attention_heads": cfg.width_heads,
        "attention_head_dim": 64,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": cfg.layers,
        "cross_attention_dim": width,
        "positional_embedding_theta": 16.0,
        "positional_embedding_max_pos": [2, 128, 128],
        "apply_gated_attention": True,
        "cross_attention_adaln": True,
        "caption_proj_before_connector": True,
        "rope_type": "split",
        "frequencies_precision": "float64",
    }


def initialise(transformer: Transformer) -> None:
    """Xavier for linears; zeros for gates, AdaLN and the output, so that every block starts as the identity."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if hasattr(module, "to_gate_logits") and module.to_gate_logits is not None:
            nn.init.zeros_(module.to_gate_logits.weight)
    for zero in (transformer.adaln_single.linear, transformer.prompt_adaln_single.linear, transformer.proj_out):
        nn.init.zeros_(zero.weight)


def make_clean(tokens: Tokens, clean: Tensor, is_clean: Tensor) -> Tokens:
    """Tokens with the latent of `clean` and without loss where `is_clean` (B,N) is set."""
    return replace(
        tokens,
        latent=torch.where(is_clean[..., None], clean, tokens.latent),
        level=is_clean.long(),
        loss_mask=~is_clean,
    )


def random_clean_tokens(batch: int, grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Which tokens (B,N) are clean: none, the first latent frame, or a random share of 0.05 to 0.9."""
    f, h, w = grid
    kind = torch.rand(batch, 1, device=device)
    first = torch.arange(f * h * w, device=device) < h * w
    share = 0.05 + 0.85 * torch.rand(batch, 1, device=device)
    blocks = torch.rand(batch, f, (h + 1) // 2, (w + 1) // 2, device=device)  # half of the clips in 2x2 blocks
    blocks = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :h, :w].flatten(1)
    single = torch.rand(batch, f * h * w, device=device)
    scattered = torch.where(torch.rand(batch, 1, device=device) < 0.5, blocks, single) < share
    return torch.where(kind < 0.34, False, torch.where(kind < 0.66, first, scattered))


class Trainer:
    """Model, optimizers, EMA and clock of one training. Under torchrun every rank draws its own batches."""

    def __init__(self, cfg: BaseTraining, vae: VideoVAE, ring: Ring, text: NanoTextEncoder, team: Team) -> None:
        self.cfg, self.vae, self.ring, self.text, self.team, self.device = cfg, vae, ring, text, team, team.device
        config = TransformerConfig.from_metadata(transformer_config(cfg, vae.channels))
        self.model = Transformer(config).to(self.device)
        initialise(self.model)
        self.parameters = [*self.model.parameters(), *text.parameters()]
        hidden = [p for p in self.model.transformer_blocks.parameters() if p.ndim == 2 and min(p.shape) > 9]
        rest = [p for p in self.parameters if all(p is not h for h in hidden)]
        cuda = self.device.type == "cuda"
        self.lr = torch.tensor(cfg.rate, device=self.device)  # a tensor, so that a captured step sees its changes
        adam = torch.optim.AdamW(
            rest, self.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=cuda, capturable=cuda, foreach=False
        )
        self.optimizers = [Muon(hidden, self.lr, decay=cfg.decay), adam]
        self.sigma = torch.zeros(cfg.batch, device=self.device)
        self.replay: Callable[[], Tensor] | None = None
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.warm, self.elapsed = 0, 0, 0.0
        if cfg.compile:
            for block in self.model.transformer_blocks:
                block.compile()

    def loss(self, latent: Tensor, ids: Tensor, sigma: Tensor, noise: Tensor, is_clean: Tensor) -> Tensor:
        """Velocity loss of each clip (B,)."""
        tokens = target_tokens(add_noise(latent, noise, sigma), sigma, self.vae.geometry, FPS)
        tokens = make_clean(tokens, to_tokens(latent), is_clean)
        with torch.autocast(self.device.type, torch.bfloat16):
            predicted = self.model(tokens, self.text(ids))
        return masked_loss(predicted, to_tokens(target_velocity(latent, noise)), tokens.loss_mask)

    def rate(self, seconds: float) -> float:
        """Learning rate: warm-up in steps, then constant, then linear decay to 0 at the end of the time."""
        left = 1 - min(self.elapsed / seconds, 1)
        return self.cfg.rate * min(1, (self.step + 1) / self.cfg.warmup, left / (1 - self.cfg.decay_from))

    def update(self) -> Tensor:
        """One update at noise levels `self.sigma` and rate `self.lr`. Returns the mean loss without a host sync."""
        latent, ids = self.ring.draw(self.cfg.batch)
        is_clean = random_clean_tokens(len(latent), tuple(latent.shape[2:]), self.device)
        loss = self.loss(latent, ids, self.sigma, torch.randn_like(latent), is_clean).mean()
        for p in self.parameters:
            p.grad = None
        loss.backward()
        self.team.average([p.grad for p in self.parameters])
        nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def capture(self) -> Callable[[], Tensor]:
        """Capture `update` as one CUDA graph, which launches its few thousand kernels at once instead of one by one."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            loss = self.update()

        def replay() -> Tensor:
            graph.replay()
            return loss.clone()

        return replay

    def train_step(self, seconds: float) -> Tensor:
        """One update, an EMA update and, every CHUNK steps, new clips. Returns the mean loss as a tensor."""
        self.lr.fill_(self.rate(seconds))
        self.sigma.copy_(sample_sigma(self.cfg.batch, self.ring.latent[0, 0].numel(), Flow(), self.draws))
        if self.replay is None and self.cfg.compile and self.device.type == "cuda" and self.warm >= RECORD_AFTER:
            self.replay = self.capture()
        self.warm += 1
        loss = self.update() if self.replay is None else self.replay()
        decay = min(self.cfg.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        if self.step % CHUNK == 0:
            self.ring.renew(self.cfg.fresh * CHUNK)
        self.step += 1
        return loss

    def run(self, seconds: float, until: float, log: Path, val: tuple[Tensor, Tensor], every: float = 90) -> None:
        """Train until second `until` of a schedule of `seconds` seconds. ValueError on a non-finite loss."""
        seed = 1000 * (self.cfg.seed + self.step) + self.team.rank
        self.draws = Generator().manual_seed(seed)
        torch.manual_seed(seed + 500)
        started, before, logged = time.time(), self.elapsed, self.elapsed
        losses: list[Tensor] = []
        while self.elapsed < until:
            losses.append(self.train_step(seconds))
            if self.step % 20 == 0:
                self.elapsed = self.team.from_first(time.time() - started + before)
            if self.elapsed - logged > every or self.elapsed >= until:
                mean, logged = float(torch.stack(losses).mean()), self.elapsed
                if not math.isfinite(mean):
                    raise ValueError(f"loss is {mean} at step {self.step}")
                row = {"step": self.step, "seconds": round(self.elapsed), "loss": mean, "ema": self.measure(val)}
                losses.clear()
                if self.team.rank == 0:
                    print(json.dumps(row), flush=True)
                    with log.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")

    def swap(self) -> None:
        """Swap the weights and their average."""
        for p, a in zip(self.parameters, self.average, strict=True):
            weight = p.data.clone()
            p.data.copy_(a)
            a.copy_(weight)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # these shapes are too rare to be worth compiling
    def measure(self, val: tuple[Tensor, Tensor]) -> dict[str, list[float] | float]:
        """Validation losses of the averaged weights at SIGMAS, and how well the model copies a reference, which it was
        never trained on: PSNR in dB of the sampled clip against the reference."""
        self.swap()
        latent, ids = val
        grid = tuple(latent.shape[2:])
        noise = torch.randn(latent.shape, generator=Generator().manual_seed(0)).to(latent)
        none = torch.zeros(len(latent), latent[0, 0].numel(), dtype=torch.bool, device=latent.device)
        first = none.clone()
        first[:, : grid[1] * grid[2]] = True
        result: dict[str, list[float] | float] = {}
        for name, is_clean in (("text", none), ("first", first)):
            result[name] = [
                round(float(self.loss(latent, ids, latent.new_full((len(latent),), s), noise, is_clean).mean()), 4)
                for s in SIGMAS
            ]
        references = latent[:64]
        with torch.autocast(self.device.type, torch.bfloat16):
            out = sample(
                self.model, self.text(ids[:64]), grid, self.vae.geometry, FPS, SamplerSettings(sigma_schedule(8, 0.95)),
                range(len(references)), [Reference(references)],
            )  # fmt: skip
            error = (self.vae.decode(out) - self.vae.decode(references)).float().square().mean((1, 2, 3, 4))
        result["copy_psnr"] = round(float((10 * torch.log10(4 / error)).mean()), 2)
        self.swap()
        return result

    def state(self) -> dict[str, object]:
        """Everything needed to resume, except the ring buffer."""
        return {
            "model": self.model.state_dict(),
            "text": self.text.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
            "step": self.step,
            "elapsed": self.elapsed,
            "cfg": asdict(self.cfg),
        }

    def load(self, state: dict) -> None:
        """Resume from `state`."""
        self.model.load_state_dict(state["model"])
        self.text.load_state_dict(state["text"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                group["lr"] = self.lr
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
        self.step, self.elapsed = state["step"], state["elapsed"]


def text_config(cfg: BaseTraining) -> NanoTextConfig:
    """Sizes of the small text encoder."""
    return NanoTextConfig(output=cfg.width_heads * 64)
