"""Comparison of two evaluations: paired over windows, names the better one, and refuses different protocols."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.compare import compare, load, main, two_sided_p
from iclora_train.config import ConfigError

N = 10
METRICS = {
    "psnr": {"title": "PSNR", "unit": "dB", "better": "high", "group": "picture"},
    "flicker": {"title": "flicker", "unit": "levels", "better": "low", "group": "time"},
    "sharpness": {"title": "sharpness", "unit": "", "better": None, "group": "picture"},
}


def scores() -> dict[str, Any]:
    """The parts of scores.json that the comparison reads."""
    rng = np.random.default_rng(0)
    row = {"psnr": rng.normal(28, 4, N), "flicker": rng.normal(3, 0.2, N), "sharpness": rng.normal(1, 0.1, N)}
    return {
        "schema": 2,
        "primary": "psnr",
        "seeds": [0, 1],
        "clips": [{"key": f"w{i}", "source": f"s{i // 3}", "partner": f"w{(i + 3) % N}"} for i in range(N)],
        "metrics": METRICS,
        "base": {"name": "nano"},
        "windows": {"adapter+reference": {key: values.tolist() for key, values in row.items()}},
        "provenance": {
            "protocol": 1,
            "shards": {"pairs": "abc"},
            "settings": {"sample": {"steps": 2}},
            "precision": "fp32",
            "device": "cpu",
            "versions": {"torch": "2"},
        },
    }


def moved(metric: str, by: float) -> dict[str, Any]:
    """`scores` with one metric shifted by about the same amount in every window."""
    result = scores()
    row = result["windows"]["adapter+reference"]
    row[metric] = [value + by * (1 + 0.01 * i) for i, value in enumerate(row[metric])]
    return result


def test_pairing_shows_a_small_gain_despite_a_wide_spread_over_windows() -> None:
    result = compare(scores(), moved("psnr", 0.3))
    psnr = result["metrics"]["psnr"]
    assert psnr["difference"]["mean"] == pytest.approx(0.3, rel=0.1)
    assert psnr["difference"]["low"] > 0.29
    assert psnr["a"]["high"] - psnr["a"]["low"] > 3  # without pairing the gain would be lost in the spread
    assert (psnr["better"], result["worse"]) == (True, False)
    assert psnr["p"] == pytest.approx(2 / 2**N)
    assert psnr["by_source"]["n"] == 4
    assert result["metrics"]["flicker"]["difference"]["mean"] == 0
    assert result["metrics"]["flicker"]["better"] is None


@pytest.mark.parametrize(
    ("metric", "by", "better", "worse"),
    [("psnr", -0.3, False, True), ("flicker", 0.3, False, False), ("flicker", -0.3, True, False)],
)
def test_direction_and_verdict(metric: str, by: float, better: bool, worse: bool) -> None:
    result = compare(scores(), moved(metric, by))
    assert result["metrics"][metric]["better"] is better
    assert result["worse"] is worse


def test_a_loss_by_chance_is_not_worse() -> None:
    other = scores()
    row = other["windows"]["adapter+reference"]
    row["psnr"] = [value + (-1.0 if i == 0 else 0.05 * (-1) ** i) for i, value in enumerate(row["psnr"])]
    result = compare(scores(), other)
    assert result["metrics"]["psnr"]["better"] is False
    assert not result["worse"]


def test_windows_that_only_one_of_the_two_measured_are_left_out() -> None:
    other = moved("psnr", 1)
    other["windows"]["adapter+reference"]["psnr"][0] = None
    del other["windows"]["adapter+reference"]["sharpness"]
    result = compare(scores(), other)
    assert result["metrics"]["psnr"]["difference"]["n"] == N - 1
    assert "sharpness" not in result["metrics"]
    assert two_sided_p(np.array([np.nan])) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seeds",), [0]),
        (("clips",), [{"key": "other", "source": "s", "partner": "w"}]),
        (("provenance", "protocol"), 2),
        (("provenance", "shards"), {"pairs": "others"}),
        (("primary",), "ssim"),
    ],
)
def test_other_windows_seeds_targets_or_protocols_are_refused(path: tuple[str, ...], value: Any) -> None:
    other = copy.deepcopy(scores())
    section = other
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    names = {"provenance": {"protocol": "protocol", "shards": "targets"}.get(path[-1], "")}
    with pytest.raises(ConfigError, match=f"their {names.get(path[0], path[0])} differ"):
        compare(scores(), other)


def test_other_differences_are_noted() -> None:
    other = moved("psnr", 1)
    other["provenance"]["settings"]["sample"]["steps"] = 4
    assert compare(scores(), other)["notes"] == ["provenance.settings.sample.steps: 2 -> 4"]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """`python -m eval.compare arguments`: the exit code."""
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_takes_files_and_folders_and_returns_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, evaluation = tmp_path / "run", tmp_path / "eval-other"
    for folder, content in ((run / "eval", scores()), (evaluation, moved("psnr", -1))):
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps(content))
    assert command(monkeypatch, run, evaluation, "--json", tmp_path / "difference.json") == 1
    assert json.loads((tmp_path / "difference.json").read_text())["worse"]
    assert "PSNR" in capsys.readouterr().out
    assert command(monkeypatch, evaluation / "scores.json", run) == 0
    capsys.readouterr()
    assert command(monkeypatch, run, tmp_path / "none") == 2
    assert "contains no scores.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged .*: run eval again"),
        ("[]", "is damaged .*: run eval again"),
        ("{}", "is not a scores.json"),
        ('{"schema": 1}', "schema 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)
