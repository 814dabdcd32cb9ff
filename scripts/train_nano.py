"""Train the small base `nano` from photos: python -m scripts.train_nano base --vae DIR --photos DIR --out DIR ...

1. python -m scripts.nano.train_vae       the VAE (see its module)
2. python -m scripts.train_nano base      the transformer and its text encoder on the VAE's latents
3. python -m scripts.train_nano pack      the files that are included in the package

Both trainings run for a given time on any number of GPUs (torchrun) and can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iclora_train.ltx2.base_model import save_base, split_by_size
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.text.nano_encoder import NanoTextEncoder
from scripts.nano.motion import MotionClips
from scripts.nano.photos import load_bank
from scripts.nano.team import Team
from scripts.nano.train_base import BaseTraining, Ring, Trainer, text_config, transformer_config
from scripts.nano.vae_quality import load_vae

PIECE = 15 << 20  # bytes per exported file


def subjects(photos: Path, owners: list[str]) -> list[str]:
    """A short description of each photo from its original file name: `Lake_by_night-2560.jpg` is "lake by night"."""
    with (photos / "photos.csv").open(newline="") as table:
        names = {row["file"]: Path(row["original"]).stem for row in csv.DictReader(table)}
    spaced = {file: re.sub(r"([a-z])([A-Z])", r"\1 \2", name) for file, name in names.items()}
    words = {file: re.findall(r"[A-Za-z]{3,}", name)[:4] for file, name in spaced.items()}
    return ["a photo of " + " ".join(words[owner]).lower() if words[owner] else "a photo" for owner in owners]


def train(args: argparse.Namespace) -> None:
    """Stage `base`: train until args.until of args.seconds seconds, then save the state and the averaged weights."""
    torch.set_float32_matmul_precision("high")
    team = Team()
    cfg = BaseTraining(
        args.heads, args.layers, args.batch, args.fresh, rate=args.rate, compile=not args.eager, seed=args.seed
    )
    vae = load_vae(args.vae).requires_grad_(False).to(team.device)
    text = NanoTextEncoder(text_config(cfg)).to(team.device)

    def ring_of(split: str, size: int, seed: int) -> Ring:
        bank = load_bank(args.photos, split)
        clips = MotionClips(bank.squares.to(team.device), seed=seed)
        return Ring(clips, vae, text, subjects(args.photos, bank.owner), size)

    val = ring_of("val", 8, 1).make(args.val)
    torch.manual_seed(cfg.seed)  # same weights on every rank
    trainer = Trainer(cfg, vae, ring_of("train", args.ring, 17 + team.rank), text, team)
    if args.state is not None and args.state.exists():
        trainer.load(torch.load(args.state, map_location=team.device, weights_only=True))
    for _ in range(-(-args.ring // 512)):
        trainer.ring.renew(512)
    if team.rank == 0:
        print(f"{sum(p.numel() for p in trainer.model.parameters()) / 1e6:.1f} M parameters, ring filled", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer.run(args.seconds, args.until or args.seconds, args.out / "base_log.jsonl", val)
    if team.rank == 0:
        if args.state is not None:
            torch.save(trainer.state(), args.state)
        export(trainer, args.out)


def export(trainer: Trainer, out: Path) -> None:
    """Write the averaged weights in bf16, in several files, with the model sizes as metadata."""
    trainer.swap()
    parts = (("transformer.", trainer.model), ("text.", trainer.text))
    tensors = {
        prefix + key: tensor.bfloat16().cpu().contiguous()
        for prefix, module in parts
        for key, tensor in module.state_dict().items()
    }
    trainer.swap()
    sizes = {"heads": str(trainer.cfg.width_heads), "layers": str(trainer.cfg.layers), "step": str(trainer.step)}
    for i, piece in enumerate(split_by_size(tensors, PIECE)):
        save_file(piece, out / f"base-{i}.safetensors", sizes)


def pack(args: argparse.Namespace) -> None:
    """Stage `pack`: write VAE, transformer and text encoder as one base in the official layout."""
    vae = load_vae(args.vae)
    state: dict[str, torch.Tensor] = {}
    for file in sorted(args.base.glob("base-*.safetensors")):
        state |= load_file(file)
        with safe_open(file, framework="pt") as opened:
            sizes = opened.metadata()
    cfg = BaseTraining(width_heads=int(sizes["heads"]), layers=int(sizes["layers"]))
    section = transformer_config(cfg, vae.channels)
    transformer, text = Transformer(TransformerConfig.from_metadata(section)), NanoTextEncoder(text_config(cfg))
    for prefix, module in (("transformer.", transformer), ("text.", text)):
        module.load_state_dict({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})
    config = {"transformer": section, "vae": vae.cfg, "text_encoder": vars(text_config(cfg))}
    for previous in args.out.glob("*.safetensors"):
        previous.unlink()
    save_base(args.out, transformer, vae, text, config, version="2.3", family="nano")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(required=True)
    base = stages.add_parser("base", help="train the transformer")
    base.set_defaults(run=train)
    base.add_argument("--photos", type=Path, required=True)
    base.add_argument("--seconds", type=float, required=True, help="length of the whole schedule")
    base.add_argument("--until", type=float, help="stop at this time; the next call resumes from the state")
    base.add_argument("--state", type=Path, help="file of the training state between calls")
    base.add_argument("--heads", type=int, default=5)
    base.add_argument("--layers", type=int, default=8)
    base.add_argument("--batch", type=int, default=256, help="clips per step and GPU")
    base.add_argument("--fresh", type=int, default=12, help="new clips per step and GPU")
    base.add_argument("--ring", type=int, default=60_000, help="latents in the buffer of a GPU")
    base.add_argument("--seed", type=int, default=0)
    base.add_argument("--rate", type=float, default=1e-3)
    base.add_argument("--eager", action="store_true", help="do not compile (for machines without a compiler)")
    base.add_argument("--val", type=int, default=256, help="validation clips")
    packing = stages.add_parser("pack", help="write the base of the package")
    packing.set_defaults(run=pack)
    packing.add_argument("--base", type=Path, required=True, help="folder of base-*.safetensors")
    for stage in (base, packing):
        stage.add_argument("--vae", type=Path, required=True, help="folder of vae-*.safetensors")
        stage.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
