"""Positions, levels, masks and windows of every kind of condition, against what ltx-core and ComfyUI compute.

`upstream_conditions.json` holds what their own functions returned for small inputs. Its key `revisions` names the
commits; each test names the functions. The inputs are written down with the numbers or follow the formulas here.
Where a program differs on purpose, the test says by how much.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import Task
from iclora_train.config.conditions import Condition, check_conditions
from iclora_train.core.types import Geometry, Tokens, VideoShape
from iclora_train.data.batch import Batch
from iclora_train.diffusion.clean_cells import CleanCells
from iclora_train.diffusion.flow_matching import masked_loss
from iclora_train.diffusion.kept_latents import mask_to_cells
from iclora_train.diffusion.reference import mask_to_grid, target_tokens
from iclora_train.diffusion.sampler import Reference, _tile_tokens, clip_tokens
from iclora_train.diffusion.tiles import Tile
from iclora_train.diffusion.training_inputs import RandomDraws, build_tokens
from iclora_train.generate import guides
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.kept import _new_cells
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.size import SizeRules
from iclora_train.generate.windows import Window, plan_windows
from iclora_train.ltx2.model.weighted_attention import AttentionBias

UPSTREAM: dict[str, Any] = json.loads((Path(__file__).parent / "upstream_conditions.json").read_text())
LTX = Geometry(channels=4, spatial=32, temporal=8)
SECONDS = 1e-6  # ComfyUI multiplies by 1 / fps in fp32, ltx-core and this project divide by fps


def axes(position: Tensor, size: tuple[int, int, int]) -> dict[str, list[list[float]]]:
    """Positions (3,N,2) of a grid as the spans of its latent frames, rows and columns."""
    time, height, width = position.unflatten(1, size)
    return {"times": time[:, 0, 0].tolist(), "rows": height[0, :, 0].tolist(), "columns": width[0, 0].tolist()}


def assert_axes(position: Tensor, size: tuple[int, int, int], expected: dict[str, Any]) -> None:
    for key, spans in axes(position, size).items():
        assert np.allclose(spans, expected[key], rtol=0, atol=SECONDS), key


def levels(tokens: Tokens) -> Tensor:
    return tokens.sigma.gather(1, tokens.level)[0]


def tokens_with(size: tuple[int, int, int], fps: float, *references: Reference) -> Tokens:
    """The tokens of a sampled target of noise level 1 and of references."""
    return clip_tokens(torch.zeros(1, 4, *size), None, LTX, fps, references)


@pytest.mark.parametrize("case", UPSTREAM["targets"])
def test_a_target(case: dict[str, Any]) -> None:
    """`VideoLatentTools.create_initial_state`; ComfyUI: `LTXVModel._process_input`, `keyframes_abs_pos_mask`."""
    size = tuple(case["size"])
    tokens = target_tokens(torch.zeros(1, 4, *size), torch.ones(1), LTX, case["fps"])
    for program in ("ltx-core", "ComfyUI"):
        assert_axes(tokens.position[0], size, case[program])
    assert tokens.keyframe[0].nonzero().flatten().tolist() == list(range(case["keyframe tokens"]))


@pytest.mark.parametrize("case", UPSTREAM["parts of the target"], ids=lambda case: case["kind"])
def test_parts_of_the_target(case: dict[str, Any]) -> None:
    """`VideoConditionByLatentIndex`, `VideoConditionByMask`; ltx-trainer's `_apply_intrinsic_condition` and
    `_compute_modality_loss`; ComfyUI: `LTXVImgToVideo`, `LTXVAddGuide.replace_latent_frames`, a noise mask, and
    `KSamplerX0Inpaint`.

    For token i: noise level 0.5, latent i, noise 7 i mod 11, prediction 3 i mod 5. Every sum is exact.
    """
    size, count = (4, 2, 3), 24
    condition = Condition(case["kind"], **case["setting"])
    check_conditions([condition])
    cells = CleanCells([condition], LTX.temporal)
    clean = cells.usual(1, size)
    assert clean is not None
    if condition.kind != "mask":
        assert torch.equal(cells.draw(1, size, torch.Generator()), clean)
    number = torch.arange(count, dtype=torch.float32).view(1, 1, *size)
    no_clip = torch.zeros(1, dtype=torch.bool)
    draws = RandomDraws(torch.tensor([0.5]), number * 7 % 11, no_clip, ~no_clip, clean=clean)
    batch = Batch(number, [], torch.zeros(1, 1, 1), torch.tensor([24.0]), ["a"])
    tokens, velocity = build_tokens(batch, draws, Task(name="x", maker="x"), LTX)
    for expected in case["levels"].values():
        assert levels(tokens).tolist() == expected
    assert tokens.loss_mask[0].int().tolist() == case["loss mask"]["ltx-trainer"]
    predicted = (torch.arange(count) * 3 % 5).float().view(1, count, 1)
    loss = masked_loss(predicted, velocity, tokens.loss_mask)
    assert loss.item() == pytest.approx(case["loss"]["ltx-trainer"], rel=1e-5)
    for expected in case["model input"].values():
        assert tokens.latent.flatten().tolist() == expected


@pytest.mark.parametrize("case", UPSTREAM["references"])
def test_references(case: dict[str, Any]) -> None:
    """`VideoConditionByReferenceLatent`; ComfyUI: `LTXVAddGuide`, which knows no temporal factor."""
    f, h, w = case["size"]
    downscale, temporal_scale = case["downscale"], case["temporal_scale"]
    size = ((f - 1) // temporal_scale + 1, h // downscale, w // downscale)
    reference = Reference(torch.zeros(1, 4, *size), downscale, temporal_scale, strength=case["strength"])
    tokens = tokens_with((f, h, w), case["fps"], reference)
    programs = case.keys() & {"ltx-core", "ComfyUI"}
    assert len(programs) == (2 if temporal_scale == 1 else 1)
    for program in programs:
        assert_axes(tokens.position[0, :, f * h * w :], size, case[program])
        assert levels(tokens)[f * h * w :].tolist() == pytest.approx([case[program]["level"]] * math.prod(size))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of 1, 8, 9, ... pictures whose grey is their number."""
    folder = tmp_path_factory.mktemp("pictures")
    for length in {case["length"] for case in UPSTREAM["guides at a frame"]}:
        (folder / str(length)).mkdir()
        for number in range(length):
            cv2.imwrite(str(folder / str(length) / f"{number:02}.png"), np.full((32, 32, 3), number, np.uint8))
    return folder


@pytest.mark.parametrize("case", UPSTREAM["guides at a frame"], ids=lambda c: f"{c['length']} at {c['frame']}")
def test_guides_at_a_frame(case: dict[str, Any], pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's `LTXVAddGuide`, and `VideoConditionByKeyframeIndex` at the frame to which it snaps."""
    read: list[int] = []

    def encode_frames(frames: np.ndarray, vae: Any) -> Tensor:
        read.extend(frames[:, 0, 0, 0].tolist())
        return torch.zeros(1, 4, (len(frames) - 1) // vae.temporal + 1, 1, 1)

    monkeypatch.setattr(guides, "encode_frames", encode_frames)
    media, vae = InputMedia.open("reference", str(pictures / str(case["length"]))), SimpleNamespace(temporal=8)
    settings = GenerateSettings(adapter="a.safetensors", out="o.mp4")
    frame = guides.start_of(ReferenceLayout("first", frame=case["frame"]), case["frames"])
    assert frame is not None
    part = guides.encode_guide(media, None, frame, case["frames"], settings, (32, 32), 25.0, vae)  # type: ignore[arg-type]
    latent_frames = (case["frames"] - 1) // 8 + 1
    reference = Reference(part.latent, frame=part.frame, clip=part.clip)
    tokens = tokens_with((latent_frames, 1, 1), 25.0, reference)
    times = tokens.position[0, 0, latent_frames:] * 25
    if case["ComfyUI"] is None:  # it refuses a clip that is longer than the rest of the video; here the clip is cut
        assert read == [0, *range(16)]
        assert times.max().item() == pytest.approx(case["frames"])
    elif case["length"] == 8:  # it takes a picture from a clip of less than nine frames; here all eight are taken
        assert (case["ComfyUI"]["encoded"], case["ComfyUI"]["times"]) == ([0], [[9, 10]])
        assert read == [0, *range(8)]
        assert times.tolist() == [pytest.approx([9, 17])]
    else:
        assert read == case["ComfyUI"]["encoded"]
        for program in ("ComfyUI", "ltx-core"):
            assert torch.allclose(times, torch.tensor(case[program]["times"]), atol=1e-5)
        late = torch.tensor(case["ltx-core, not snapped"]["times"]) - times  # ltx-core does not snap a clip
        assert torch.allclose(late, torch.tensor(float(frame - part.frame)).expand_as(late), atol=1e-5)
        assert case["length"] > 1 or frame == part.frame


def grey(frames: int, height: int, width: int, shift: int = 0) -> Tensor:
    """A mask (F,H,W) with values 0, 0.1, ... 1 in squares of 16 pixels."""
    t, y, x = torch.arange(frames), torch.arange(height) // 16, torch.arange(width) // 16
    return (7 * t[:, None, None] + 3 * y[:, None] + 5 * x + shift) % 11 / 10


@pytest.mark.parametrize("case", UPSTREAM["attention"])
@pytest.mark.parametrize("program", ["ltx", "comfyui"])
def test_attention_strengths_and_masks(case: dict[str, Any], program: str) -> None:
    """ltx: `ConditioningItemAttentionStrengthWrapper`, `downsample_mask_video_to_latent` (ltx-pipelines) and
    `_prepare_self_attention_mask`. comfyui: `_append_guide_attention_entry`, `_build_guide_self_attention_mask`."""
    references = []
    for i, (downscale, side, frames) in enumerate(((1, 2, 9), (2, 1, 9))):
        mask = grey(frames, side * 32, side * 32, i) if case["masked"][i] else None
        latent = torch.zeros(1, 4, 2, side, side)
        references.append(Reference(latent, downscale, 1, case["strengths"][i], mask))
    tokens = tokens_with((2, 2, 2), 24.0, *references)
    assert tokens.weight is not None
    weights = pair_weights(AttentionBias(tokens.weight, tokens.group, program))
    to_all = torch.tensor(case[program]["target to all"])
    assert torch.allclose(weights[:8], to_all.expand(8, -1), atol=1e-5)
    assert torch.allclose(weights[:, :8], to_all[:, None].expand(-1, 8), atol=1e-5)
    same = tokens.group[8:, None] == tokens.group[8:]
    assert torch.equal(weights[8:, 8:], torch.where(same, 1.0, float(case[program]["between references"])))


def pair_weights(bias: AttentionBias) -> Tensor:
    """The factor exp(bias) of every pair of query and key, of one clip."""
    count = bias.rectangles[0].queries.stop
    index, weights = torch.arange(count), torch.zeros(count, count)
    for rectangle in bias.rectangles:
        rows, columns = index[rectangle.queries], index[rectangle.keys]
        logits = torch.zeros(len(rows), len(columns))
        if rectangle.query_bias is not None:
            logits = logits + rectangle.query_bias[0, 0][:, None]
        if rectangle.key_bias is not None:
            logits = logits + rectangle.key_bias[0, 0, 0]
        weights[rows[:, None], columns] = logits.exp()
    return weights


@pytest.mark.parametrize("case", UPSTREAM["attention masks on the grid"])
def test_attention_masks_on_the_grid(case: dict[str, Any]) -> None:
    """ComfyUI's `_downsample_mask_to_latent`; ltx-pipelines refuses lengths that do not divide (null)."""
    ours = mask_to_grid(grey(*case["pixels"]), tuple(case["size"])).flatten()
    assert ours.tolist() == pytest.approx(case["ComfyUI"], abs=1e-6)
    assert case["ltx-pipelines"] is None or ours.tolist() == pytest.approx(case["ltx-pipelines"], abs=1e-6)


# A program's cells, and the mode of ours that comes closest, with the number of its cells (of 36) that differ: masks
# that stand still, then masks that change with time. ltx-trainer and ComfyUI's core do not group frames as the VAE.
CELLS = {
    # `_load_and_downsample_mask` of its mask condition, whose 1 is kept: the new cells are the others
    "ltx-trainer": ("half", [0, 0, 0], [10, 12, 0, 0, 12, 0]),
    # with `reshape_mask`: one trilinear sample in the middle of a cell, no average
    "SetLatentNoiseMask, at least 0.5": ("half", [0, 3, 0], [2, 12, 0, 12, 12, 0]),
    # ComfyUI-LTXVideo's, clamp_min 0, with LTXVSetVideoLatentNoiseMasks: causal in time, one sample in space
    "LTXVPreprocessMasks, max": ("any", [0, 15, 12], [0] * 6),
    "LTXVPreprocessMasks, mean": ("half", [0, 3, 0], [0] * 6),
    "LTXVPreprocessMasks, min": ("all", [0, 9, 0], [0] * 6),
}


@pytest.mark.parametrize("program", CELLS)
def test_cells_of_pixel_masks(program: str) -> None:
    mode, still, moving = CELLS[program]
    different = []
    for case in UPSTREAM["pixel masks"]["masks"]:
        mask = torch.zeros(UPSTREAM["pixel masks"]["pixels"])
        for t0, t1, y0, y1, x0, x1 in case["boxes"]:
            mask[t0:t1, y0:y1, x0:x1] = 1
        ours = mask_to_cells(mask, tuple(UPSTREAM["pixel masks"]["size"]), mode).flatten().int()
        different.append(int((ours != torch.tensor([int(cell) for cell in case["cells"][program]])).sum()))
    assert different == still + moving


@pytest.mark.parametrize("case", UPSTREAM["retake"])
def test_frames_that_are_made_anew(case: dict[str, Any]) -> None:
    """`TemporalRegionMask` of the retake pipeline, in seconds; `regenerate_mode=any`, in frames."""
    settings = GenerateSettings(
        adapter="a.safetensors", out="o.mp4", source="s.mp4", regenerate_frames=case["regenerate_frames"]
    )
    frames = case["frames"]
    latent_frames = (frames - 1) // 8 + 1
    shape = VideoShape(frames, 32, 32, case["fps"])
    new = _new_cells(None, settings, shape, Window(0, frames), (latent_frames, 1, 1)).flatten().int().tolist()
    expected = [int(cell) for cell in case["new"]]
    if case["fps"] == 29.97:  # 1 / 29.97 is larger in fp32 than in fp64: ltx-core takes the latent frame before too
        assert (expected, new) == ([1, 1], [0, 1])
    else:
        assert new == expected


@pytest.mark.parametrize("case", UPSTREAM["windows"])
def test_windows(case: dict[str, Any]) -> None:
    """Latent frames of ComfyUI's context windows (`create_windows_static_standard`) and of ComfyUI-LTXVideo's
    `LTXVLoopingSampler`, whose last window is shorter where the length does not divide."""
    settings = GenerateSettings(
        adapter="a.safetensors",
        out="o.mp4",
        window_frames=case["window_frames"],
        window_overlap=case["window_overlap"],
    )
    windows = plan_windows(settings, case["frames"], SizeRules(32, 8), 8)
    ours = [[window.start // 8, (window.end - 1) // 8 + 1] for window in windows]
    assert ours == case["ComfyUI"]
    *before, last = case["LTXVLoopingSampler"]
    assert (before, last[1]) == (ours[:-1], ours[-1][1])
    assert last[0] - ours[-1][0] == (2 if case["frames"] == 121 else 0)


@pytest.mark.parametrize("case", UPSTREAM["tiles"], ids=lambda case: f"downscale {case['downscale']}")
def test_tiles(case: dict[str, Any]) -> None:
    """`VideoModalityTilingHelper` of ltx-core: tokens and positions of a tile, and the weights of the average."""
    (f, h, w), downscale = case["size"], case["downscale"]
    reference = Reference(torch.zeros(1, 4, f, h // downscale, w // downscale), downscale)
    total, ours, theirs = torch.zeros(h, w), [], []
    for tile in case["tiles"]:
        place = Tile(tuple(tile["rows"]), tuple(tile["columns"]), case["overlap"])
        part = _tile_tokens(place, torch.zeros(1, 4, f, h, w), None, LTX, 24.0, [reference])
        _, rows, columns = place.size((f, h, w))
        assert part.index.tolist() == tile["tokens"]
        target, other = part.tokens.position[0].split([f * rows * columns, len(part.index) - f * rows * columns], dim=1)
        assert_axes(target, (f, rows, columns), tile["target"])
        assert_axes(other, (f, rows // downscale, columns // downscale), tile["reference"])
        place.cut(total).add_(place.weights())
        ours.append((place, place.weights()))
        theirs.append(torch.tensor(tile["weights"]).view(rows, columns))
    for (place, weight), expected in zip(ours, theirs, strict=True):
        assert torch.allclose(weight / place.cut(total), expected, atol=1e-5)
