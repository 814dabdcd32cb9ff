"""Write a checkpoint of LTX-2, 2.3 or 2.5 with random weights: official key names, shapes and metadata.

    python -m scripts.synthetic_checkpoint --version 2.3 --layout unified --size tiny --out /tmp/ltx

Use it to try every step without the real weights. --text-encoder DIR also writes a random Gemma to DIR. At full size it
needs less than 1 GB of host memory with --device cuda, and 46 GB of disk (28 GB with --fp8), plus 23 GB for Gemma.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.synthetic.configs import GEMMA, SIZES, VERSIONS
from scripts.synthetic.folders import LAYOUTS, SyntheticCheckpoint, write_diffusers, write_split, write_unified
from scripts.synthetic.gemma import gemma_for


def write_checkpoint(
    out: Path,
    version: str,
    layout: str = "unified",
    size: str = "tiny",
    fp8: bool = False,
    seed: int = 0,
    device: str = "cpu",
    gemma: tuple[int, int] | None = None,
) -> Path:
    """Write a checkpoint into the folder `out`. Returns the path for model.checkpoint.

    gemma: hidden size and number of layers of the text encoder; default: 3840 and 48 at size full, 24 and 2 at tiny.
    """
    checkpoint = SyntheticCheckpoint(version, size, gemma)
    if layout == "diffusers":
        if fp8:
            raise ValueError("--fp8 is not published as a diffusers folder; choose --layout unified or split")
        return write_diffusers(checkpoint, out, seed, device)
    return (write_unified if layout == "unified" else write_split)(checkpoint, out, fp8, seed, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", choices=VERSIONS, required=True)
    parser.add_argument("--layout", choices=LAYOUTS, default="unified")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--fp8", action="store_true", help="the blocks' linears in fp8 with their scales")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="device that generates the random numbers, e.g. cuda")
    parser.add_argument("--gemma", type=int, nargs=2, metavar=("HIDDEN", "LAYERS"), help="sizes of the text encoder")
    parser.add_argument("--text-encoder", type=Path, metavar="DIR", help="also write its text encoder into this folder")
    args = parser.parse_args()
    gemma = tuple(args.gemma) if args.gemma else None
    print(write_checkpoint(args.out, args.version, args.layout, args.size, args.fp8, args.seed, args.device, gemma))
    if args.text_encoder:
        print(gemma_for(args.version, args.text_encoder, "tiny" if gemma == GEMMA["tiny"] else args.size, args.device))


if __name__ == "__main__":
    main()
