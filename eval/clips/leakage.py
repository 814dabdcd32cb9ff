"""Whether an adapter was trained on the clips that it is judged on, in whichever data.root they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from iclora_train.config import Config, require
from iclora_train.data.clip_hashes import HashIndex, KnownClip, read_trained_on


def require_unseen(config: Config, adapter: Path, judged: Mapping[str, KnownClip], divided: set[str]) -> str | None:
    """ConfigError if the adapter was trained on a clip that it is judged on: the same recording, the same file, or
    frames that show the same (checks.duplicate). Returns a note if that cannot be told.

    judged: the clips of the evaluated windows. divided: recordings that preparation has put into train and heldout on
    purpose, because there is no other; they are not compared.
    """
    trained = read_trained_on(adapter)
    if trained is None:
        return (
            f"the clips that {adapter.name} was trained on are not known (no {adapter.stem}.trained_on.json of this "
            "file beside it): whether it has seen the evaluated ones cannot be checked"
        )
    names, clips = list(trained.clips), list(trained.clips.values())
    limit, distance = config.checks.duplicate.most, config.checks.distance
    index = HashIndex([clip.video for clip in clips], [clip.hashes() for clip in clips], distance)
    of_recording = {clip.recording: name for name, clip in trained.clips.items() if clip.recording}
    leaked = []
    for name, clip in judged.items():
        if clip.recording in divided or name in divided:
            continue
        if clip.recording in of_recording:
            leaked.append(f"{name} is of the recording {clip.recording}, as is {of_recording[clip.recording]}")
        elif limit is not None:
            number, share = index.nearest(clip.video, clip.hashes())
            if number is not None and share > limit:
                same = "is the same file as" if clip.video == clips[number].video else "shows the same as"
                leaked.append(f"{name} {same} {names[number]}")
    require(
        not leaked,
        f"leakage: {adapter} was trained on {len(leaked)} of the {len(judged)} clips that it is judged on "
        f"({'; '.join(leaked[:3])}), so metrics on them would prove nothing: judge it on other clips",
    )
    compared = [clip for clip in judged.values() if clip.frames or clip.video]
    if len(compared) < len(judged) or not any(clip.frames for clip in clips):
        return (
            "clips are compared with the training clips by recording and file only, because data.root was prepared "
            "by an older version: run data_prep again to compare what they show"
        )
    return None
