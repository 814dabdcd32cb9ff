"""eval with the audio stream: which model is judged, what the stream changes, what is said where it is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep import pipeline
from eval.budget import Request, choose
from eval.clips.audio_stream import choose_audio
from eval.clips.clip_source import device_of
from eval.clips.conditions import ADAPTER_REFERENCE, VIDEO_ALONE, Condition, all_conditions, at_strength, batches
from eval.clips.cost import ClipCost
from eval.clips.sampled import SampledClips
from eval.clips.two_stages import TwoStageClips
from eval.compare import compare
from eval.judging.audio_effect import audio_lines
from eval.metrics.picture import psnr
from eval.report import audio as report_section
from eval.report.first_screen import head
from eval.report.wandb_log import clip_columns
from eval.report.wandb_summary import summary
from eval.run import open_source
from eval.scores import judged
from eval.transfer.measure import Measurements
from eval.transfer.variants import Variant, variants
from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError
from iclora_train.ltx2 import audio_stream
from iclora_train.media.shard_clip import encode_clip
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic.upsampler import write_upsampler
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import moving
from tests.command import Result, run
from tests.eval_world import compose_config
from tests.test_data_sound import noise
from tests.test_eval import SCHEMA, violations
from tests.test_eval_transfer import settings as transfer_settings
from tests.test_generate import write_adapter
from tests.test_generate_audio import audio_adapter
from tests.test_real_bases import SMALL

RATES = (24.0, 30.0)  # frames per second of the clips by turns: sounds of two lengths
EVALUATION = ("eval.windows=8", "eval.seeds=[0]", "eval.strengths=[1.0,0.0]", "eval.batch_size=4", "eval.workers=1")


class World:
    """A tiny 2.3 with its audio half, pairs without sound of four held-out recordings, and two adapters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = write_checkpoint(root / "base", "2.3")
        self.encoder = f"model.text_encoder={gemma_for('2.3', root / 'gemma')}"
        lines = ["video,caption,split"]
        for i in range(6):
            split = ("train", "val", "heldout", "heldout", "heldout", "heldout")[i]
            fps = RATES[i % 2]
            clip = encode_clip(moving(32, 96, 96, i), fps, lossless=False, sound=noise(32 / fps, i))
            (root / f"clip{i}.mp4").write_bytes(clip)
            lines.append(f"clip{i}.mp4,coloured squares {i},{split}")
        (root / "clips.csv").write_text("\n".join(lines) + "\n")
        pipeline.prepare(self.config(self.encoder))
        write_adapter(root / "video.safetensors", self.checkpoint, task="deblur")
        audio_adapter(root / "both.safetensors", self.checkpoint)

    @property
    def arguments(self) -> list[str]:
        clips = [f"data.clips={self.root / 'clips.csv'}", f"data.root={self.root / 'shards'}", "data.heldout_windows=8"]
        base = ["conf=deblur", "model=ltx2_3", f"model.checkpoint={self.checkpoint}", "checks.vae.action=warn"]
        small = [setting for setting in SMALL if not setting.startswith("data.heldout")]
        return [*base, *small, *clips, *EVALUATION, f"runs_dir={self.root / 'runs'}"]

    def config(self, *more: str) -> Config:
        return compose_config([*self.arguments, *more])

    def source(self, *more: str, adapter: str = "video") -> SampledClips:
        source = open_source(self.config(f"adapter={self.root / adapter}.safetensors", *more))
        assert isinstance(source, SampledClips)
        return source

    def evaluate(self, label: str, *more: str, adapter: str = "video") -> tuple[Result, dict[str, Any]]:
        file = f"adapter={self.root / adapter}.safetensors"
        result = run(self.root, "eval", *self.arguments, file, f"eval.label={label}", *more)
        assert result.code == 0, result.err
        (folder,) = (self.root / "runs").glob(f"*/eval-{adapter}-*-{label}")
        return result, json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def both(world: World) -> tuple[Result, dict[str, Any]]:
    """The evaluation with both streams of an adapter that was trained on the video stream alone."""
    return world.evaluate("both", world.encoder)


def test_eval_says_how_far_the_outputs_with_and_without_sound_are_apart(
    world: World, both: tuple[Result, dict[str, Any]]
) -> None:
    result, scores = both
    assert "audio: video and audio streams\n" in result.out
    assert violations(scores, SCHEMA) == []
    facts = {"stream": "on", "reason": None, "in_checkpoint": True, "used_modules": 0, "unused_modules": 0}
    assert scores["audio"] == facts
    windows, between = scores["windows"], scores["per_window"]["changes"]["audio_psnr"]
    assert len(between) == 8
    assert all(5 < value < 60 for value in between)
    value = scores["audio_effect"]["psnr"]
    assert value["n"] == 8
    assert value["low"] < value["mean"] < value["high"]
    difference = scores["paired"][VIDEO_ALONE]["psnr"]
    expected = np.subtract(windows[ADAPTER_REFERENCE]["psnr"], windows[VIDEO_ALONE]["psnr"])
    assert np.isfinite(expected).all()
    by_recording = [expected[[c["source"] == r for c in scores["clips"]]].mean() for r in recordings_of(scores)]
    assert difference["mean"] == pytest.approx(np.mean(by_recording), abs=1e-5)
    assert difference["low"] < difference["high"]
    assert judged(scores, 32, 8)["audio_effect"] == scores["audio_effect"]
    assert f"audio stream: PSNR between the outputs with and without it {value['mean']:.2f} [" in result.out
    assert "with it minus without, psnr " in result.out
    report = next((world.root / "runs").glob("*/eval-video-*-both/report.html")).read_text()
    assert '<section id="audio"><h2>Audio stream</h2>' in report
    assert "PSNR between both outputs, dB" in report
    assert ", both streams; " in report
    assert f'<input type="checkbox" name="column" value="{VIDEO_ALONE}"> {VIDEO_ALONE}</label>' in report
    assert "The adapter has no modules in the audio stream" in report


def recordings_of(scores: dict[str, Any]) -> list[str]:
    return sorted({clip["source"] for clip in scores["clips"]})


def test_the_video_stream_alone_is_the_model_without_its_audio_half(
    world: World, both: tuple[Result, dict[str, Any]]
) -> None:
    """The row equals the judged row of an evaluation without the audio stream, whose clips it shares."""
    _, scores = both
    result, alone = world.evaluate("alone", world.encoder, "model.audio=off")
    assert "audio: the video stream alone (model.audio=off)\n" in result.out
    assert "what it changes in the video is not measured: model.audio=off" in result.out
    assert "2 are done" not in result.out
    assert ", 8 are done" in result.out
    assert alone["windows"][ADAPTER_REFERENCE] == scores["windows"][VIDEO_ALONE]
    assert alone["windows"]["base"]["psnr"] != scores["windows"]["base"]["psnr"]
    assert VIDEO_ALONE not in alone["windows"]
    assert "audio_effect" not in alone
    assert alone["audio"] | {"reason": ""} == scores["audio"] | {"stream": "off", "reason": ""}
    notes = compare(alone, scores)["notes"]
    assert notes[0] == "the judged model: the audio stream is off in A and on in B (model.audio)"
    assert compare(scores, scores)["notes"] == []
    old = {key: value for key, value in alone.items() if key != "audio"}
    assert "the judged model" in compare(old, scores)["notes"][0]
    assert not any("the judged model" in note for note in compare(old, alone)["notes"])


def test_modules_of_the_audio_stream_are_used_or_counted(world: World) -> None:
    count = sum("audio" in name for name in lora.read(world.root / "both.safetensors").weights)
    on, off = (world.source(world.encoder, f"model.audio={switch}", adapter="both").judged for switch in ("on", "off"))
    assert on.audio_modules == {"used_modules": count, "unused_modules": 0}
    assert off.audio_modules == {"used_modules": 0, "unused_modules": count}
    assert (on.json_facts["unused_modules"], off.json_facts["unused_modules"]) == (0, count)
    assert f"{count} of its" in str(off.remarks)
    assert "modules are not used" not in str(on.remarks)


def test_modules_of_the_audio_stream_change_the_judged_clips(world: World) -> None:
    source = world.source(world.encoder, adapter="both")
    batch = batches(source.held_out.windows, [0], 2)[0]
    judged_clips, _ = source.clips(at_strength(1), batch)
    video = {name: pair for name, pair in source.judged.adapter.weights.items() if "audio" not in name}  # type: ignore[union-attr]
    path = world.root / "stripped.safetensors"
    lora.save(path, replace(source.judged.adapter, weights=video))  # type: ignore[arg-type, type-var]
    other, _ = world.source(world.encoder, adapter="stripped").clips(at_strength(1), batch)
    assert (judged_clips != other).any()


def test_without_a_text_encoder_the_video_stream_is_judged_alone(world: World) -> None:
    result, scores = world.evaluate("silent")
    remedy = "set model.text_encoder to the folder of its Gemma, or prepare the data with data.sound"
    assert f"audio: the video stream alone (the latents in {world.root}/shards have no text features" in result.out
    assert remedy in result.out
    assert remedy in scores["audio"]["reason"]
    assert VIDEO_ALONE not in scores["windows"]
    file = f"adapter={world.root / 'video.safetensors'}"
    refused = run(world.root, "eval", *world.arguments, file, "model.audio=on")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "set data.sound=required or silence, or model.audio=auto or off (for eval model.text_encoder" in refused.err
    with pytest.raises(ConfigError, match=r"model.audio=on trains on the sound"):
        world.config("model.audio=on", world.encoder).require_trainable_audio()
    with pytest.raises(ConfigError, match=r"flow.locality=1.0 acts on the video stream alone"):
        world.config("model.audio=on", "data.sound=silence", "flow.locality=1.0").require_trainable_audio()


def test_features_in_the_latents_need_no_text_encoder(world: World, tmp_path: Path) -> None:
    sound = ("data.sound=required", f"data.root={tmp_path / 'shards'}")
    pipeline.prepare(world.config(world.encoder, *sound))
    source = world.source(*sound)
    assert source.audio is not None
    assert source.audio.text is None
    pair = source.held_out.latents(source.held_out.windows[0])
    encoded = world.source(world.encoder)
    assert encoded.audio is not None
    other = encoded.held_out.latents(encoded.held_out.windows[0])
    assert (pair.caption, other.audio_text) == (other.caption, None)
    items = batches(source.held_out.windows[:1], [0], 1)[0]
    first = source.audio.stream([pair], items, 2, False)
    second = encoded.audio.stream([other], items, 2, False)
    assert torch.allclose(first.text, second.text, atol=0.05)  # of another batch, in bf16
    assert torch.equal(first.noise, second.noise)  # type: ignore[arg-type]


def test_an_audio_reference_goes_along_with_the_reference(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own, the partner's, or none; with strength 0 none, as without a reference."""
    dub = ("data.sound=required", "task.audio_reference.source=target", "task.audio_reference.placement=dubit",
           f"data.root={tmp_path / 'shards'}")  # fmt: skip
    pipeline.prepare(world.config(world.encoder, *dub))
    message = r"video.safetensors was trained with an audio reference: none; task deblur has the one of dubit"
    with pytest.raises(ConfigError, match=message):
        world.source(*dub)
    write_adapter(world.root / "dub.safetensors", world.checkpoint, task="deblur", audio_reference="dubit")
    source = world.source(*dub, adapter="dub")
    held_out, streams = source.held_out, []
    stream = source.audio.stream  # type: ignore[union-attr]

    def record(*given: Any) -> Any:
        streams.append(stream(*given))
        return streams[-1]

    monkeypatch.setattr(source.audio, "stream", record)
    (batch,) = batches(held_out.windows[:1], [0], 1)
    window = batch[0].window
    partner = held_out.windows_and_donors[window.partner]
    used = {"swapped": partner, "base": None, "strength 0": None, VIDEO_ALONE: None}
    specifications = set()
    for condition in source.conditions:
        streams.clear()
        source._latents(condition, batch, source.sampler)
        specifications.add(json.dumps(source.specification(condition, batch)))
        donor = used.get(condition.name, None if condition.reference == "none" else window)
        assert len(streams) == condition.audio, condition
        for made in streams:
            assert (made.reference is None) == (donor is None), condition
            if made.reference is not None:
                latent = held_out.latents(donor).audio_reference  # type: ignore[arg-type]
                common = min(made.frames, latent.shape[1])  # type: ignore[union-attr]
                assert made.reference.shape[2] == made.frames
                assert torch.equal(made.reference[0, :, :common], latent[:, :common])  # type: ignore[index]
                assert made.placement == "dubit"
    assert len(specifications) == len(source.conditions)


def test_memory_decides_only_what_is_left_to_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.clips.audio_stream.device_obstacle", lambda *_: "too little memory")
    source = world.source(world.encoder)
    choices = {
        switch: choose_audio(
            world.config(world.encoder, f"model.audio={switch}"), source.base, source.held_out, device_of(source.config)
        )
        for switch in ("auto", "on", "off")
    }
    assert {switch: choice.obstacle for switch, choice in choices.items()} == {
        "auto": "too little memory",
        "on": None,
        "off": "model.audio=off",
    }
    assert choices["auto"].overrides == ["model.audio=off"]
    assert source.transformer.config.audio is None
    monkeypatch.setattr("eval.clips.audio_stream.checkpoint_obstacle", lambda _: audio_stream.NO_AUDIO_HALF)
    with pytest.raises(ConfigError, match=r"model.audio=on: .* has no audio half.*; set model.audio=auto"):
        choose_audio(
            world.config("model.audio=on", world.encoder), source.base, source.held_out, device_of(source.config)
        )


def test_a_clip_does_not_depend_on_its_batch_and_its_sound_not_on_the_condition(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sounds of two lengths in one batch are sampled apart, and stand in the order of the batch."""
    source = world.source(world.encoder)
    windows = source.held_out.windows
    assert {source.held_out.fps(window) for window in windows} == set(RATES)
    (batch,) = batches([windows[i] for i in (0, 2, 1, 7)], [0], 4)
    noises: dict[tuple[str, int], list[torch.Tensor]] = {}
    stream = source.audio.stream  # type: ignore[union-attr]

    def record(pairs: Any, items: Any, *more: Any) -> Any:
        made = stream(pairs, items, *more)
        assert {pair.fps for pair in pairs} in ({24.0}, {30.0})
        assert made.noise is not None
        for item, drawn in zip(items, made.noise, strict=True):
            noises.setdefault((item.window.key, item.seed), []).append(drawn)
        return made

    monkeypatch.setattr(source.audio, "stream", record)
    for condition in (
        at_strength(1),
        Condition("base", False, "none"),
        Condition("empty", True, "own", empty_prompt=True),
    ):
        together = source._latents(condition, batch, source.sampler)
        alone = [source._latents(condition, [item], source.sampler) for item in batch]
        assert torch.allclose(together.video, torch.cat([latents.video for latents in alone]), atol=1e-4)
        assert len(together.sounds) == len(batch)
        for sound, latents in zip(together.sounds, alone, strict=True):
            assert sound is not None
            assert torch.allclose(sound, latents.sounds[0], atol=1e-4)
    assert all(torch.equal(drawn, several[0]) for several in noises.values() for drawn in several)
    assert len({float(several[0].flatten()[0]) for several in noises.values()}) == len(batch)


def test_the_second_stage_refines_the_sound_of_the_first(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = world.source(world.encoder)
    sizes = {"in_channels": 8, "mid_channels": 32, "num_blocks_per_stage": 1}
    upsampler = write_upsampler(tmp_path / "up.safetensors", **sizes)
    config = world.config(world.encoder, f"adapter={world.root / 'video.safetensors'}")
    source = TwoStageClips(config, plain.base, plain.judged, plain.held_out, plain.cache, upsampler)
    starts = []
    stream = source.audio.stream  # type: ignore[union-attr]

    def record(pairs: Any, items: Any, frames: int, empty: bool, start: Any, *more: Any) -> Any:
        starts.append(start)
        return stream(pairs, items, frames, empty, start, *more)

    monkeypatch.setattr(source.audio, "stream", record)
    clips, _ = source.clips(at_strength(1), batches(source.held_out.windows[:1], [0], 1)[0])
    assert clips.shape[1:3] == (9, 64)
    assert [start is None for start in starts] == [True, False]


def test_the_budget_counts_the_video_stream_alone_and_takes_it_before_the_strengths() -> None:
    cost = ClipCost(with_reference=1.0, without_reference=0.5, decoding=1.0, passes=4, video_alone=2.0)
    conditions = all_conditions([1.0, 0.5, 0.0], audio=True)
    alone = next(condition for condition in conditions if condition.name == VIDEO_ALONE)
    assert (cost.of(alone, 10), cost.of(at_strength(1), 10)) == (21.0, 41.0)
    assert replace(cost, video_alone=None).of(alone, 10) == 41.0
    request = Request(conditions, 8, (0,), 10, 0, cost)
    few = ("adapter+reference", "base+reference", "swapped", "base", "strength 0", "adapter")
    for names in (few, (*few, VIDEO_ALONE), (*few, VIDEO_ALONE, "strength 0.5")):
        plan = replace(request.everything, conditions=names, probes=False)
        chosen = choose(request, (request.seconds(plan) + 1) / 0.9)
        assert set(chosen.conditions) == set(names)


def test_the_report_and_wandb_say_which_model_was_judged(both: tuple[Result, dict[str, Any]]) -> None:
    _, scores = both
    assert ", both streams; " in head(scores)
    logged = summary(scores)
    assert logged["audio/stream"] == "on"
    assert logged["audio/psnr"] == scores["audio_effect"]["psnr"]
    assert logged["audio/difference/psnr"] == scores["paired"][VIDEO_ALONE]["psnr"]
    assert clip_columns(scores)[-1] == VIDEO_ALONE
    left_out = {key: value for key, value in scores.items() if key != "audio_effect"}
    assert audio_lines(left_out)[0].endswith("not measured: the condition is not part of the plan (eval.budget)")
    assert "not measured" in report_section.section(left_out)
    without_half = scores | {"audio": {**scores["audio"], "stream": "off", "in_checkpoint": False}}
    del without_half["audio_effect"]
    assert (report_section.section(without_half), audio_lines(without_half)) == ("", [])
    assert not any(key.startswith("audio/") for key in summary(without_half))


def test_the_figure_is_that_of_the_clips(world: World, both: tuple[Result, dict[str, Any]]) -> None:
    _, scores = both
    source = world.source(world.encoder)
    (batch, *_) = batches(source.held_out.windows, [0], 4)
    alone = next(condition for condition in source.conditions if condition.name == VIDEO_ALONE)
    assert source.is_finished(alone, batch)
    item, first, second = batch[1], source.clip(at_strength(1), batch, 1), source.clip(alone, batch, 1)
    value = scores["per_window"]["changes"]["audio_psnr"][item.window.number]
    assert value == pytest.approx(psnr(first, second).mean(), abs=1e-5)


def test_the_passes_of_a_choice_are_those_of_the_sampler(world: World) -> None:
    """`eval.transfer` estimates by them. With sound, guidance takes a pass more: one without the other stream."""
    guided = "sample.guidance=3"
    for scales in ((), (guided,), (guided, "sample.stg_scale=1"), ("sample.audio_guidance=4",)):
        source = world.source(world.encoder, *scales)
        config, sampler = source.config, source.sampler
        of_both = Variant("a", "b", config.sample, "fp32", "", (9, 64, 64), audio=True)
        assert of_both.guided_passes == sampler.audio.passes(sampler.guidance)
        assert replace(of_both, audio=False).guided_passes == sampler.guidance.passes


def test_transfer_chooses_the_audio_stream_once_for_all_choices(world: World, tmp_path: Path) -> None:
    file = f"adapter={world.root / 'both.safetensors'}"
    arguments = [*world.arguments, world.encoder, file]
    on, off = (
        Measurements(transfer_settings(*arguments, f"model.audio={switch}"), tmp_path) for switch in ("auto", "off")
    )
    assert [m.audio.setting for m in (on, off)] == ["on", "off"]
    assert (on.judged.audio_modules["unused_modules"], off.judged.audio_modules["used_modules"]) == (0, 0)
    choices = variants(on.config, on.size, on.base.geometry, audio=True)
    assert {on.settings(choice).model.audio for choice in choices} == {"on"}
    assert on.path(choices[0]) != off.path(choices[0])
    assert on.source(choices[0]).audio is not None
    assert off.source(choices[0]).audio is None
