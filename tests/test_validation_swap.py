"""The swapped reference of validation is one of another recording, or is not given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iclora_train.config import Config, ConfigError, Validation
from iclora_train.core.types import LatentPair, VideoShape
from iclora_train.data.recordings import partners_of_others, recording_of_clips
from iclora_train.data.shard_index import ShardError
from iclora_train.data.shard_sample import pack_latents
from iclora_train.data.shards import ShardSet, ShardWriter
from iclora_train.training.validation import ValidationBatches, fit_latent

SIZES = {"wide": (3, 4, 6), "tall": (3, 6, 4), "long": (5, 4, 6), "still": (1, 4, 6)}


def shards(folder: Path, *windows: str) -> ShardSet:
    """Latents of val windows such as "wide a" or "tall b/1": size, clip and, after a slash, recording. The values of
    the reference of window i lie in [i, i + 1)."""
    writer = ShardWriter(folder, "latents", {"base": {"parts": {}}})
    samples = []
    for i, window in enumerate(windows):
        size, _, clip = window.partition(" ")
        clip, _, recording = clip.partition("/")
        target = torch.zeros(2, *SIZES[size])
        reference = i + torch.rand(2, *SIZES[size]).clamp(0, 0.99)
        f, h, w = SIZES[size]
        pair = LatentPair(f"w{i}", target, (reference,), torch.zeros(1, 3), 25.0, "")
        shape = VideoShape(4 * f - 3, 8 * h, 8 * w, 25.0)
        samples.append(pack_latents(pair, shape, clip, {"source": recording} if recording else {}))
    writer.write("val-00000.tar", samples)
    writer.write_empty_text(torch.zeros(1, 3))
    writer.finish(["val-00000.tar"])
    return ShardSet.open(folder)


def swaps(batches: ValidationBatches) -> dict[str, int]:
    """Key of a window -> number of the window that gave its swapped reference."""
    result = {}
    for correct, swapped in batches.batches:
        assert swapped is not None
        assert [r.shape for r in swapped.references] == [r.shape for r in correct.references]
        assert swapped.keys == correct.keys
        result |= {key: int(ref.min()) for key, ref in zip(correct.keys, swapped.references[0], strict=True)}
    return result


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (("wide a", "wide b", "wide c", "wide d"), {"w0": 2, "w1": 3, "w2": 0, "w3": 1}),
        (("wide a", "tall b"), {"w0": 1, "w1": 0}),  # one window of each size
        (("wide a", "long b"), {"w0": 1, "w1": 0}),
        (("wide a", "wide a", "tall b"), {"w0": 2, "w1": 2}),  # the commonest size has one clip
        (("wide a", "wide a", "wide a", "wide b"), {"w0": 3, "w1": 3, "w2": 3, "w3": 1}),
        (("wide a", "tall b", "tall b", "wide c"), {"w0": 3, "w3": 0}),
        (("wide a/1", "wide b/2", "wide c/1", "wide d/2"), {"w0": 3, "w1": 0, "w2": 1, "w3": 2}),  # crops of two shots
    ],
)
def test_a_swapped_reference_is_of_another_recording(
    windows: tuple[str, ...], expected: dict[str, int], tmp_path: Path
) -> None:
    batches = ValidationBatches.open(shards(tmp_path, *windows), Config())
    assert batches.no_swap is None
    assert swaps(batches) == expected


@pytest.mark.parametrize("windows", [("wide a",), ("wide a", "wide a"), ("wide a/shot", "tall b/shot")])
def test_one_recording_has_no_swapped_reference_and_the_reason_is_said(
    windows: tuple[str, ...], tmp_path: Path
) -> None:
    batches = ValidationBatches.open(shards(tmp_path, *windows), Config())
    assert all(swapped is None for _, swapped in batches.batches)
    recording = "shot" if "/" in windows[0] else "a"
    assert batches.no_swap == f"all val windows are of one recording, {recording}"


def test_no_val_clip_is_refused_with_the_settings_to_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has none: prepare more, or set validation\.loss_every=0 validation\.clips"):
        ValidationBatches.open(shards(tmp_path), Config())


def test_the_number_of_windows_is_a_setting(tmp_path: Path) -> None:
    latents = shards(tmp_path, *(f"wide {name}" for name in "abcdefgh"))
    batches = ValidationBatches.open(latents, Config(validation=Validation(windows=2)))
    assert swaps(batches) == {"w0": 4, "w4": 0}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("other", SIZES)
def test_a_reference_of_another_size_is_cut_or_continued(size: str, other: str) -> None:
    f, h, w = SIZES[other]
    latent = torch.arange(f * h * w).reshape(1, f, h, w)
    fitted = fit_latent(latent, SIZES[size])
    assert fitted.shape == (1, *SIZES[size])
    assert set(fitted.unique().tolist()) <= set(latent.unique().tolist())  # vectors of the other clip
    if size == other:
        assert torch.equal(fitted, latent)


def test_a_smaller_latent_is_mirrored_and_a_shorter_one_played_to_and_fro() -> None:
    assert fit_latent(torch.arange(3).reshape(1, 1, 1, 3), (1, 1, 7)).flatten().tolist() == [2, 1, 0, 1, 2, 1, 0]
    assert fit_latent(torch.arange(3).reshape(1, 3, 1, 1), (7, 1, 1)).flatten().tolist() == [0, 1, 2, 1, 0, 1, 2]
    assert fit_latent(torch.arange(7).reshape(1, 1, 7, 1), (1, 3, 1)).flatten().tolist() == [2, 3, 4]
    assert fit_latent(torch.arange(7).reshape(1, 7, 1, 1), (3, 1, 1)).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("recordings", ["abab", "aab", "abbb", "abcdefg", "aaaabbbb"])
def test_partners_are_of_another_recording(recordings: str) -> None:
    partners = partners_of_others(recordings)
    assert partners is not None
    assert all(recordings[i] != recordings[j] for i, j in enumerate(partners))
    assert partners_of_others("aaa") is None


def test_the_recording_of_a_clip_is_its_record_or_the_clip(tmp_path: Path) -> None:
    latents = shards(tmp_path, "wide a/shot", "wide b", "wide a")
    assert recording_of_clips(latents) == {"a": "shot", "b": "b"}
    assert recording_of_clips(latents, [1]) == {"b": "b"}
    tar = tmp_path / "val-00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"record"', b'"record'))
    with pytest.raises(ShardError, match="is damaged at sample w0"):
        recording_of_clips(latents)
