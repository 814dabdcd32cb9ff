"""Captioner: describes a picture with a vision-language model of transformers, e.g. the Gemma 3 of LTX-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from iclora_train.config import ConfigError, require
from iclora_train.core.fingerprint import digest

PROMPT = (
    "Describe in one plain sentence who or what is seen, what it does and where. Do not mention an image or a video."
)
MAX_TOKENS = 96  # tokens of a description
REMEDY = "give a folder with config.json, tokenizer, image processor and safetensors, e.g. of google/gemma-3-4b-it"


class Captioner:
    """The model in memory, on the GPU if there is one, and a digest of its settings and files as its identity."""

    def __init__(self, model: Any, processor: Any, identity: str) -> None:
        self.model, self.processor, self.identity = model, processor, identity

    @classmethod
    def open(cls, folder: Path) -> Captioner:
        """Load a folder in transformers' format. Only safetensors are read, and code from the folder is never run.

        ConfigError if the folder does not contain a vision-language model.
        """
        config = folder / "config.json"
        require(config.is_file(), f"data.captioner={folder} holds no config.json: {REMEDY}")
        cuda = torch.cuda.is_available()
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.bfloat16 if cuda else torch.float32
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"data.captioner={folder} is not a vision-language model ({reason}): {REMEDY}") from error
        weights = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
        identity = digest({"asked": PROMPT, "config": config.read_text(), "weights": weights})
        return cls(model.eval().to("cuda" if cuda else "cpu"), processor, identity)

    @torch.inference_mode()
    def describe(self, picture: np.ndarray) -> str:
        """One line about a picture uint8 RGB (H,W,3). Decoding is greedy, so the result is reproducible."""
        content = [{"type": "image", "image": Image.fromarray(picture)}, {"type": "text", "text": PROMPT}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)  # (1, prompt and answer)
        answer: str = self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(answer.split())
