"""Settings of `task.audio_reference`: clean audio tokens of another sound, which the sound and the video are made for.

As a reference video, it stands beside the target's tokens at noise level 0, without a loss. Its tokens have times on
the clock of the video, by its `placement`.
"""

from __future__ import annotations

from dataclasses import dataclass

from iclora_train.config.errors import one_of, require

COLUMN = "reference_sound"  # of the clip list
SOURCES = ("target", "reference", "column")
PLACEMENTS = ("av2av", "dubit")


@dataclass
class AudioReference:
    """One audio reference, or none where `source` is null.

    source     the file that it is read from, for the time of the window: `target` (the clip itself), `reference` (the
               supplied reference video) or `column` (`reference_sound` of the clip list, a sound file or a clip)
    placement  `av2av`: at the times of the target, from 0 (Lightricks' trainer); `dubit`: before the target, at
               negative times that end one latent frame before 0 (Dub-It of ltx-pipelines)
    p          probability that a training clip has it; validation always does
    """

    source: str | None = None
    placement: str = "av2av"
    p: float = 1.0

    def check(self) -> None:
        """ConfigError names the key and the value that is wrong."""
        if self.source is not None:
            one_of("task.audio_reference.source", self.source, SOURCES)
        one_of("task.audio_reference.placement", self.placement, PLACEMENTS)
        require(
            0 < self.p <= 1,
            f"task.audio_reference.p={self.p} must lie in (0, 1]; for none at all set task.audio_reference.source=null",
        )

    def content(self) -> dict[str, str | None]:
        """What the stored pairs depend on."""
        return {"source": self.source}
