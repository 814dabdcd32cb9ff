"""A local captioner: a vision-language model in transformers' format, e.g. Qwen3-VL, or the Gemma 3 of LTX-2.

Frames are shown as pictures with their times between them, which every such model reads. For Qwen3-VL this is the form
in which it reads a video, too: its processor writes `<1.5 seconds>` before the patches of each pair of frames, and a
frame alone is a pair of twice the same. transformers' video processors need torchvision, which is left out here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from data_prep.captions.answers import Answer, clean
from data_prep.captions.questions import Part, Question
from iclora_train.config import Captioner, ConfigError, require
from iclora_train.core.fingerprint import digest
from iclora_train.core.networks import load_whole, refuse_unsuitable

REMEDY = (
    "give a folder with config.json, tokenizer, image processor and safetensors, e.g. of Qwen/Qwen3-VL-8B-Instruct "
    "or google/gemma-3-4b-it"
)
FIRST_QUESTION = (  # of version 0.1
    "Describe in one plain sentence who or what is seen, what it does and where. Do not mention an image or a video."
)


class LocalModel:
    """The model in memory, on the GPU if there is one."""

    def __init__(self, model: Any, processor: Any, settings: Captioner) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        processor.tokenizer.padding_side = "left"
        ends = model.generation_config.eos_token_id
        self.ends = torch.tensor(ends if isinstance(ends, list) else [] if ends is None else [ends])

    @classmethod
    def open(cls, folder: Path, settings: Captioner, key: str = "captioner.model") -> LocalModel:
        """Load a folder in transformers' format. Only safetensors are read, and code from the folder is never run.

        key: the setting that names the folder. ConfigError if the folder does not contain a vision-language model.
        """
        require((folder / "config.json").is_file(), f"{key}={folder} holds no config.json: {REMEDY}")
        cuda = torch.cuda.is_available()
        with refuse_unsuitable(key, folder, "a vision-language model", REMEDY):
            processor = _open_processor(folder)
            dtype = torch.bfloat16 if cuda else torch.float32
            model = load_whole(AutoModelForImageTextToText.from_pretrained, key, folder, dtype)
        return cls(model.to("cuda" if cuda else "cpu"), processor, settings)

    def answers(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """The answer to each question, in order, computed in batches of captioner.batch_size."""
        remaining = iter(questions)
        while batch := list(islice(remaining, self.settings.batch_size)):
            yield from self._batch(batch)

    def _batch(self, batch: list[Question]) -> list[Answer]:
        """The answers of a batch, halved if the GPU runs out of memory."""
        try:
            return self._generate(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ConfigError(
                    f"the GPU has too little memory for {self.settings.frames} frames of a clip: set captioner.frames "
                    "or captioner.side lower, or use a smaller model"
                ) from error
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._batch(batch[:half]) + self._batch(batch[half:])

    def inputs(self, batch: list[Question]) -> Any:
        """What the model reads: tokens (B,N), padded on the left, and the patches of all frames."""
        template = self.processor.chat_template or ""
        without_thoughts = {"enable_thinking": False} if "enable_thinking" in str(template) else {}  # Qwen3.5
        return self.processor.apply_chat_template(
            [[{"role": "user", "content": [_content(part) for part in question.parts]}] for question in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            **without_thoughts,
        ).to(self.model.device, self.model.dtype)

    @torch.inference_mode()
    def _generate(self, batch: list[Question]) -> list[Answer]:
        inputs = self.inputs(batch)
        drawn = {"do_sample": True, "temperature": self.settings.temperature} if batch[0].attempt else {}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(batch[0].seed)
            tokens = self.model.generate(
                **inputs, **({"do_sample": False} | drawn), max_new_tokens=self.settings.max_tokens
            )  # (B, prompt and answer)
        written: Tensor = tokens[:, inputs["input_ids"].shape[1] :].cpu()
        texts = self.processor.batch_decode(written, skip_special_tokens=True)
        cut = ~torch.isin(written, self.ends).any(1) & (written.shape[1] >= self.settings.max_tokens)  # (B,)
        return [Answer(clean(text), bool(is_cut)) for text, is_cut in zip(texts, cut, strict=True)]


def model_identity(folder: Path) -> dict[str, Any]:
    """The configuration of a model, and the sizes of its weights by file."""
    weights = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    return {"config": (folder / "config.json").read_text(), "weights": weights}


def first_identity(folder: Path) -> str:
    """The identity that version 0.1 gave a captioner: it asked FIRST_QUESTION about the middle frame."""
    return digest({"asked": FIRST_QUESTION, **model_identity(folder)})


def _content(part: Part) -> dict[str, Any]:
    """A part of a question in the form of chat templates."""
    return (
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": Image.fromarray(part)}
    )


class _WithoutVideo(ProcessorMixin):
    """Stands between the processor of a model and its base class, and leaves out the part for videos."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if "video" not in name]

    def __init__(self, *parts: Any, video_processor: Any = None, **more: Any) -> None:
        super().__init__(*parts, **more)


def _open_processor(folder: Path) -> Any:
    """The processor of a model, without its part for videos if that cannot be loaded without torchvision."""
    try:
        return AutoProcessor.from_pretrained(folder, local_files_only=True)
    except ImportError:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        whole: Any = PROCESSOR_MAPPING[type(config)]
        reduced: Any = type(whole.__name__, (whole, _WithoutVideo), {})
        return reduced.from_pretrained(folder, local_files_only=True)
