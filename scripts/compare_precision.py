"""Compare training results in two precisions: python -m scripts.compare_precision bf16 fp8 [key=value ...]

Trains a task on nano in each precision with each seed, with the training command. Prints for each run the final
validation loss with the correct references and the final PSNR of the validation clips. The last lines have, per value,
the mean of each precision, the difference of the means, and the standard deviation over the seeds of the first
precision ("spread"), to compare the difference with. Finished runs are not trained again. All other arguments are
settings, e.g. data.root=... trainer.max_steps=100.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from iclora_train.training.validation_metrics import current_column

PRECISIONS = ("fp32", "bf16", "fp8")
SAMPLED = "sampled_psnr"


def final_values(folder: Path) -> dict[str, float]:
    """The last validation loss of a run, mean over its noise levels, and the last PSNR of its validation clips."""
    with (folder / "metrics.csv").open() as file:
        rows = [{current_column(name): cell for name, cell in row.items()} for row in csv.DictReader(file)]
    losses = [name for name in rows[-1] if name.startswith("val_correct_")]
    values = {"val_loss": mean(float(_last(rows, name)) for name in losses)}
    if SAMPLED in rows[-1]:
        values[SAMPLED] = float(_last(rows, SAMPLED))
    return values


def _last(rows: list[dict[str, str]], name: str) -> str:
    return next(row[name] for row in reversed(rows) if row[name])


def train(task: str, precision: str, seed: int, settings: list[str]) -> dict[str, float]:
    """Train one run, unless it is finished, and return its final values."""
    name = f"{task}-{precision}-{seed}"
    fixed = [f"conf={task}", f"model.precision={precision}", f"seed={seed}", f"run={name}", "eval.after_training=false"]
    process = subprocess.run([sys.executable, "-m", "iclora_train", *fixed, *settings], check=False)
    if process.returncode:
        raise SystemExit(process.returncode)
    runs = next((word.partition("=")[2] for word in settings if word.startswith("runs_dir=")), "runs")
    return final_values(Path(runs, name))


def compare(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, float | str]]:
    """For each value and each precision but the first: both means, their difference, and the first precision's spread.

    runs: the final values of each seed, by precision.
    """
    first, *others = runs
    means = {name: {key: mean(run[key] for run in runs[name]) for key in runs[first][0]} for name in runs}
    return [
        {
            "value": key,
            first: round(means[first][key], 4),
            other: round(means[other][key], 4),
            "difference": round(means[other][key] - means[first][key], 4),
            "spread": round(stdev(run[key] for run in runs[first]), 4),
        }
        for key in runs[first][0]
        for other in others
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", default=[], help="precisions, the reference first, and settings")
    parser.add_argument("--task", default="deblur")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    args = parser.parse_intermixed_args()
    precisions = [word for word in args.words if word in PRECISIONS] or ["bf16", "fp8"]
    settings = [word for word in args.words if word not in PRECISIONS]
    if len(precisions) < 2 or args.seeds < 2 or any("=" not in word for word in settings):
        parser.error(f"give at least two of {', '.join(PRECISIONS)}, two seeds, and settings as key=value")
    runs: dict[str, list[dict[str, float]]] = {}
    for precision in precisions:
        runs[precision] = []
        for seed in range(args.seeds):
            runs[precision].append(train(args.task, precision, seed, settings))
            print(json.dumps({"precision": precision, "seed": seed, **runs[precision][-1]}), flush=True)
    for row in compare(runs):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
