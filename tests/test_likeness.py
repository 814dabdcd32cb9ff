"""A clip looks most like its own target, in whatever colours, and a wrong file like the target of another recording."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.base import Clip
from eval.metrics.likeness import layout
from tests import doses

TARGETS = [doses.scene(seed) for seed in range(6)]


@pytest.mark.parametrize("change", ["blur", "noise", "negative", "other colours"])
def test_a_changed_clip_is_most_like_its_own_target(change: str) -> None:
    def changed(clip: Clip) -> Clip:
        if change == "negative":
            return np.asarray(255 - clip, np.uint8)
        if change == "other colours":
            return np.ascontiguousarray(np.minimum(clip[..., [2, 0, 1]] // 2 + 60, 255))
        return np.asarray(getattr(doses, change)(clip, {"blur": 1.5, "noise": 12}[change]), np.uint8)

    targets = np.stack([layout(target) for target in TARGETS])
    for i, target in enumerate(TARGETS):
        alike = targets @ layout(changed(target))
        assert alike.argmax() == i
        assert alike[i] > np.delete(alike, i).max() + 0.3


def test_a_mirrored_clip_is_not_like_its_target() -> None:
    alike = [float(layout(target) @ layout(target[:, :, ::-1])) for target in TARGETS]
    assert max(alike) < 0.5


def test_a_flat_clip_is_like_nothing() -> None:
    assert float(layout(np.full_like(TARGETS[0], 90)) @ layout(TARGETS[0])) == 0
    assert float(layout(TARGETS[0][:1]) @ layout(TARGETS[0][:1])) == pytest.approx(1)
