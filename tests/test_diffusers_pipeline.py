"""Where diffusers' LTX2InContextPipeline differs from this project. docs/adapters.md and the model card say so.

If one of these tests fails after an update of diffusers, the sentence in both places is no longer true.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import LTX2InContextPipeline
from torch import Tensor

from iclora_train.ltx2.base_model import BaseModel
from scripts.synthetic_checkpoint import write_checkpoint
from tests.test_transformer import Case, diffusers_model, diffusers_velocity, inputs_of, relative_error


@torch.no_grad()
def test_attention_weights_between_0_and_1_act_as_0_in_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers adds (1 - w) * -10000 to the logits, ComfyUI and ltx-pipelines add log(w)."""
    file = write_checkpoint(tmp_path, "2.3")
    net, model, case = BaseModel.open(str(file)).transformer(), diffusers_model(file), Case()
    tokens, text = inputs_of(case, net)
    target = tokens.group == 0

    def velocity(weight: float) -> Tensor:
        mask = torch.ones(2, len(target), len(target))
        mask[:, target[:, None] != target] = weight  # between target and reference, in both directions
        monkeypatch.setattr(model, "forward", partial(type(model).forward, model, video_self_attention_mask=mask))
        return diffusers_velocity(model, tokens, text, case)[:, target]

    off = velocity(0.0)
    assert relative_error(velocity(0.5), off) == relative_error(velocity(0.9), off) == 0
    assert relative_error(velocity(1.0), off) > 1e-3


@torch.no_grad()
def test_diffusers_runs_2_5_without_its_keyframe_marker(tmp_path: Path) -> None:
    """Training, ComfyUI and ltx-pipelines mark the tokens of the first latent frame. The pipeline passes no mask."""
    assert "video_keyframes_mask" not in inspect.getsource(LTX2InContextPipeline)
    file = write_checkpoint(tmp_path, "2.5")
    net, model, case = BaseModel.open(str(file)).transformer(), diffusers_model(file), Case()
    tokens, text = inputs_of(case, net)
    marked = diffusers_velocity(model, tokens, text, case)
    tokens.keyframe.zero_()
    assert relative_error(diffusers_velocity(model, tokens, text, case), marked) > 0.1


@pytest.mark.parametrize(("strength", "equal"), [(0.0, True), (0.5, False), (1.0, True)])
def test_a_reference_strength_between_0_and_1_is_not_blend_ltx(strength: float, equal: bool) -> None:
    """Both noise a reference once, to the level m = 1 - strength. Its clean estimate is x - m sigma v in ltx-pipelines
    and x - sigma v in diffusers.
    """
    generator = torch.Generator().manual_seed(0)
    clean, noise, v = (torch.randn(1, 3, 4, generator=generator) for _ in range(3))
    m, sigma = 1 - strength, 1.0
    x = m * noise + (1 - m) * clean
    scheduler = SimpleNamespace(sigmas=[sigma])
    theirs = LTX2InContextPipeline.convert_velocity_to_x0(None, x, v, 0, scheduler)
    ours = x - m * sigma * v
    assert torch.allclose(m * theirs + (1 - m) * clean, m * ours + (1 - m) * clean, atol=1e-6) is equal
