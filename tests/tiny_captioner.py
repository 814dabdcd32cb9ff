"""A tiny Qwen3-VL that a test teaches in seconds to describe clips by the colours of their frames, in order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from data_prep.captions.instructions import INSTRUCTIONS
from data_prep.captions.local_model import LocalModel
from data_prep.captions.questions import Question
from iclora_train.config import Captioner
from iclora_train.media.shard_clip import encode_clip
from scripts.synthetic.video_language import write_qwen

RGB = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "grey": (128, 128, 128)}
FRAMES = 4
STEPS, RATE, LEARNED = 300, 5e-3, 0.02
TAUGHT = ("describe", INSTRUCTIONS["restoration"], INSTRUCTIONS["structure"])  # instructions that it knows


def clip_frames(colours: Sequence[str], frames: int = 8, seed: int = 0) -> np.ndarray:
    """Frames (F,64,64,3) in these colours one after the other, with a little texture."""
    noise = np.random.default_rng(seed).integers(-20, 20, (frames, 64, 64, 1))
    plain = np.array([RGB[colours[i * len(colours) // frames]] for i in range(frames)])
    return np.clip(plain[:, None, None] + noise, 0, 255).astype(np.uint8)


def write_coloured(path: Path, *colours: str, seed: int = 0) -> Path:
    """Write `clip_frames` as an mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_clip(clip_frames(colours, seed=seed), 8.0, lossless=False))
    return path


def question(frames: np.ndarray, instruction: str = "describe") -> Question:
    """What the model is asked about frames of a clip with 8 frames a second."""
    numbers = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    parts = [part for i in numbers for part in (f"<{i / 8:.1f} seconds>", frames[i])]
    return Question((*parts, instruction), 0, 0)


def write_taught_captioner(folder: Path, answers: Mapping[tuple[str, ...], str]) -> Path:
    """Write a model that answers these texts to clips of these colours."""
    words = [word for text in answers.values() for word in re.findall(r"\w+|\.", text)]
    write_qwen(folder, words)
    local = LocalModel.open(folder, Captioner(frames=FRAMES))
    tokenizer, model = local.processor.tokenizer, local.model.train()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    texts = [f"{text}{tokenizer.eos_token}" for text in answers.values()]
    told = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    targets = told["input_ids"].masked_fill(told["attention_mask"] == 0, -100)  # (B,M)
    asked = [local.inputs([question(clip_frames(c, seed=i), text) for c in answers]) for i, text in enumerate(TAUGHT)]
    for step in range(STEPS):
        inputs = asked[step % len(TAUGHT)]
        both = {name: torch.cat([inputs[name], told[name]], 1) for name in ("input_ids", "attention_mask")}
        types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(told["input_ids"])], 1)
        pixels = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
        logits = model(**both, **pixels, mm_token_type_ids=types).logits  # (B,N+M,V)
        loss = cross_entropy(logits[:, -targets.shape[1] - 1 : -1].flatten(0, 1), targets.flatten())
        if loss.item() < LEARNED:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < LEARNED, "the model has not learned its answers"
    model.save_pretrained(folder)
    return folder
