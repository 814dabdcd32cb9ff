"""The benchmark's baseline computes the velocity of the model with one AdaLN row per token."""

from __future__ import annotations

import json

import pytest
import torch

from scripts import benchmark_audio
from scripts.benchmark import baseline
from scripts.synthetic.random_base import RandomBase
from tests.test_compiled import scene


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_the_baseline_gives_the_same_velocity_with_a_row_per_token(version: str) -> None:
    net, tokens = RandomBase(version, "tiny").transformer(), scene(8)
    text = torch.randn(1, 5, net.config.text_width, generator=torch.Generator().manual_seed(1))
    rows: list[int] = []
    net.adaln_single.register_forward_hook(lambda _module, args, _out: rows.append(args[0].shape[1]))
    with torch.no_grad():
        expected = net(tokens, text)
        with baseline(), torch.profiler.profile() as profiler:
            velocity = net(tokens, text)
            first_outputs = net(tokens, text, num_outputs=3)
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first_outputs, expected[:, :3], rtol=1e-4, atol=1e-5)
    assert rows == [2, len(tokens.group), len(tokens.group)]
    assert "aten::where" not in {event.name for event in profiler.events()}  # rows are not selected per token


def test_the_audio_half_is_timed_beside_the_video_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "tiny", "--size", "64x64x9", "--precision", "fp32", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["benchmark_audio", *arguments])
    benchmark_audio.main()
    rows = {row["case"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows.keys() == {"video", "joint", "isolated"}
    assert all(row["seconds"] > 0 and row["tokens"] == 2 * 2 * 2 * 2 for row in rows.values())
