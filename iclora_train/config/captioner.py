"""Settings of the captioner (`captioner.*`): the vision-language model, the frames it sees, which answers count."""

from __future__ import annotations

import re
from dataclasses import dataclass

from iclora_train.config.errors import one_of, require
from iclora_train.config.paths import expand_home


@dataclass
class Captioner:
    """A vision-language model that describes clips: for `data_prep caption` and `data.captioner`. docs/captions.md."""

    model: str | None = None  # folder in transformers' format; with an endpoint, the name of a model that it serves
    endpoint: str | None = None  # address of an OpenAI-compatible server, e.g. http://host:8000/v1
    frames: int = 12  # frames of a clip that the model sees, from the first to the last one
    side: int = 512  # larger frames are reduced to this longer side, in pixels
    batch_size: int = 4  # clips in a batch of a local model
    requests: int = 8  # requests to an endpoint at a time
    timeout: float = 120.0  # seconds that a request to an endpoint may take
    instruction: str | None = None  # replaces the instruction of the task family
    form: str = "plain"  # plain: one description; edit: "Reference shows ... Edited shows ..."
    max_tokens: int = 256  # of an answer
    min_words: int = 5  # a shorter answer is asked again
    most_equal: int = 3  # clips with the same caption; a further one is asked again
    script: str | None = "latin"  # of the letters of an answer; null: any
    phrases: list[str] | None = None  # phrases that no answer may contain; null: those of the task family
    attempts: int = 3  # how often a clip is asked
    temperature: float = 0.7  # from the second attempt on; the first takes the most probable words
    out: str | None = None  # folder of the text files; null: next to the videos
    overwrite: bool = False  # write new captions for clips that have a text file

    def __post_init__(self) -> None:
        for key in ("frames", "batch_size", "requests", "max_tokens", "most_equal", "attempts"):
            require(getattr(self, key) >= 1, f"captioner.{key}={getattr(self, key)} must be at least 1")
        require(self.side >= 64, f"captioner.side={self.side} must be at least 64 pixels")
        require(self.min_words >= 0, f"captioner.min_words={self.min_words} must be 0 or more")
        require(self.timeout > 0, f"captioner.timeout={self.timeout} must be above 0 seconds")
        require(0 < self.temperature <= 2, f"captioner.temperature={self.temperature} must lie in (0, 2]")
        require(self.instruction != "", "captioner.instruction is empty: write one, or null for the task's own")
        one_of("captioner.form", self.form, ("plain", "edit"))
        if self.script is not None:
            one_of("captioner.script", self.script, ("latin",))
        if self.endpoint is not None:
            require("@" not in self.endpoint, "captioner.endpoint holds a password: put it into OPENAI_API_KEY instead")
            is_address = re.fullmatch(r"https?://[^/\s]+(/\S*)?", self.endpoint) is not None
            example = "is not an address such as http://host:8000/v1"
            require(is_address, f"captioner.endpoint={self.endpoint} {example}")
        self.out = None if self.out is None else expand_home(self.out)
