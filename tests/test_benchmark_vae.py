"""The VAE benchmark prints a row for each shape and variant, and refuses variants that it does not know."""

from __future__ import annotations

import json
import sys

import pytest

from iclora_train.config import ConfigError
from scripts import benchmark_vae


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_vae", "--size", "tiny", "--repeats", "1", *arguments])
    benchmark_vae.main()


def test_a_row_for_each_variant(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    variants = ["fp32 diffusers", "fp32 diffusers channels_last pair", "fp32", "bf16"]
    run(monkeypatch, "--shapes", "64x64x9", "--variants", *variants)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["variant"] for row in rows] == variants
    assert rows[0]["error"] == 0
    assert max(row["error"] for row in rows[1:3]) < 1e-5  # another order of sums
    assert 1e-4 < rows[3]["error"] < 0.1  # the rounding of bf16
    assert all(row["seconds_per_window"] > 0 for row in rows)


def test_an_unknown_word_and_two_precisions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for variant, message in (("fp32 fast", "unknown words \\['fast'\\]"), ("fp32 bf16", "one of")):
        with pytest.raises(ConfigError, match=message):
            run(monkeypatch, "--shapes", "64x64x9", "--variants", variant)
    with pytest.raises(ConfigError, match="width x height x frames"):
        run(monkeypatch, "--shapes", "64x64")
