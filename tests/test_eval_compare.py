"""Comparison of two evaluations: paired over windows, names the better one, and refuses different protocols."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from eval.compare import allowed_losses, compare, load, main
from eval.junit import write_claims
from iclora_train.config import ConfigError
from iclora_train.core.scores import as_json, values_digest

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
    assert psnr["p"] < 1e-4  # four recordings
    assert psnr["by_source"] == {**psnr["difference"], "n": 4}
    assert result["metrics"]["flicker"]["difference"]["mean"] == 0
    assert result["metrics"]["flicker"]["better"] is None


def test_a_metric_with_another_definition_is_left_out() -> None:
    """An evaluation without the number is older than the numbers."""
    old, newer, newest = scores(), scores(), scores()
    newer["provenance"]["definitions"], newest["provenance"]["definitions"] = 2, 3
    for each in (old, newer, newest):
        each["metrics"] = METRICS | {"level_bend": METRICS["sharpness"]}
        row = each["windows"]["adapter+reference"]
        row["level_bend"] = row["sharpness"]
    for first, second, redefined in ((old, newer, {"flicker"}), (newest, newer, {"level_bend"})):
        for result in (compare(first, second), compare(second, first)):
            assert {"flicker", "level_bend"} - result["metrics"].keys() == redefined
            assert "psnr" in result["metrics"]
            for key in redefined:
                assert f"the definition of {key}, which is left out" in result["notes"]


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


def test_clips_with_and_without_given_parts_are_not_compared() -> None:
    extended = scores()
    conditions = [{"kind": "prefix", "p": 1.0, "frames": [1, 9]}]
    extended["provenance"]["settings"] |= {"task": {"conditions": conditions}}
    with pytest.raises(ConfigError, match=r"their task\.conditions differ"):
        compare(scores(), extended)
    conditions[0]["p"] = 0.2  # rarely given in training, and not in the evaluation
    assert "psnr" in compare(scores(), extended)["metrics"]


def test_windows_that_only_one_of_the_two_measured_are_left_out() -> None:
    other = moved("psnr", 1)
    other["windows"]["adapter+reference"]["psnr"][0] = None
    del other["windows"]["adapter+reference"]["sharpness"]
    result = compare(scores(), other)
    assert result["metrics"]["psnr"]["difference"]["n"] == N - 1
    assert "sharpness" not in result["metrics"]
    assert "psnr: windows left out that only A has measured: 1" in result["notes"]


@pytest.mark.parametrize("is_null", [True, False])
def test_a_comparison_without_its_primary_metric_does_not_pass(is_null: bool) -> None:
    other = scores()
    row = other["windows"]["adapter+reference"]
    if is_null:
        row["psnr"] = [None] * N
    else:
        del row["psnr"]
    with pytest.raises(ConfigError, match="psnr decides this comparison, and B did not measure it"):
        compare(scores(), other)
    with pytest.raises(ConfigError, match="and A did not measure it"):
        compare(other, scores())
    with pytest.raises(ConfigError, match="and A and B did not measure it"):
        compare(other, other)
    assert "psnr" not in compare(scores(), other, strict=False)["gates"]  # in a report, which decides nothing


def test_two_that_measured_different_windows_do_not_pass() -> None:
    first, second = scores(), scores()
    for i in range(N):
        (first if i % 2 else second)["windows"]["adapter+reference"]["psnr"][i] = None
    with pytest.raises(ConfigError, match=r"psnr decides .* they have no window in common for it"):
        compare(first, second)


def test_one_recording_decides_nothing() -> None:
    """Ten windows that all get worse, but of a single recording."""
    before, after = scores(), moved("psnr", -0.3)
    for result in (before, after):
        result["clips"] = [{**clip, "source": "s"} for clip in result["clips"]]
    result = compare(before, after)
    psnr = result["metrics"]["psnr"]
    assert (psnr["p"], psnr["difference"]["low"], psnr["better"]) == (None, None, False)
    assert not result["worse"]


def test_means_and_difference_are_of_the_same_windows() -> None:
    """A null in one evaluation leaves the window out of both means."""
    a, b = scores(), moved("psnr", 0.3)
    a["windows"]["adapter+reference"]["psnr"][0] = 1000.0
    b["windows"]["adapter+reference"]["psnr"][0] = None
    psnr = compare(a, b)["metrics"]["psnr"]
    assert psnr["a"]["n"] == psnr["b"]["n"] == psnr["difference"]["n"] == N - 1
    assert psnr["a"]["mean"] < 100
    assert psnr["b"]["mean"] - psnr["a"]["mean"] == pytest.approx(psnr["difference"]["mean"])


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


def test_the_only_evaluation_of_a_run_is_found(tmp_path: Path) -> None:
    for name in ("eval-quick", "eval-30m"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(scores()))
        if name == "eval-quick":
            assert load(tmp_path)["primary"] == "psnr"
    with pytest.raises(ConfigError, match=r"contains no scores.json of its own, but .*eval-30m, .*eval-quick: give"):
        load(tmp_path)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every entry of a JSON value, of lists only the first and the last."""
    entries = value.items() if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        entries = [(0, value[0]), (len(value) - 1, value[-1])]
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


DAMAGE = ("removed", None, "text", [], {}, -1, 1e400, True)


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_no_damage_looks_like_a_worse_adapter(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 means that B is worse: a damaged file must not end with it, nor in a traceback."""
    whole = scores() | {"readers": {"pose": "network 0123456789ab"}}
    settings = {"sample": {"steps": 2}, "task": {"conditions": [{"p": 0.5}]}, "eval": {"pose_network": None}}
    whole["provenance"] |= {"settings": settings, "definitions": 2, "weights": {"lpips": "ab"}, "loss_sigmas": [0.5]}
    (tmp_path / "a.json").write_text(json.dumps(whole))
    for path in places(whole):
        other = copy.deepcopy(whole)
        section: Any = other
        for key in path[:-1]:
            section = section[key]
        if damage == "removed":
            del section[path[-1]]
        else:
            section[path[-1]] = damage
        (tmp_path / "b.json").write_text(json.dumps(other))
        for order in (("a.json", "b.json"), ("b.json", "a.json")):
            code = command(monkeypatch, *(tmp_path / name for name in order))
            assert code in (0, 2), path
            assert code == 0 or capsys.readouterr().err.startswith("error: "), path


def test_edited_values_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = scores(), moved("psnr", 1)
    for name, content in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_bytes(as_json({**content, "digest": values_digest(content)}))
    assert command(monkeypatch, tmp_path / "a", tmp_path / "b") == 0
    assert capsys.readouterr().err == ""
    edited = json.loads((tmp_path / "b" / "scores.json").read_text())
    edited["windows"]["adapter+reference"]["psnr"][3] += 0.001
    (tmp_path / "b" / "scores.json").write_text(json.dumps(edited))
    assert command(monkeypatch, tmp_path / "a", tmp_path / "b") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'b' / 'scores.json'} was changed after the evaluation wrote it")


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


# ---- allowed losses and JUnit


def junit(path: Path) -> dict[str, tuple[str, str]]:
    """test -> (state, message), after a check that the counts agree with the tests."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    suites = root.findall("testsuite")
    cases = {
        case.attrib["name"]: next(
            (child.tag, child.attrib["message"]) if "message" in child.attrib else ("passed", child.text or "")
            for child in case
        )
        for case in suites[0].findall("testcase")
    }
    states = [state for state, _ in cases.values()]
    counts = {"tests": len(states), "errors": 0}
    counts |= {"failures": states.count("failure"), "skipped": states.count("skipped")}
    for element in (root, *suites):
        assert {key: int(element.attrib[key]) for key in counts} == counts
    return cases


@pytest.mark.parametrize(
    ("metric", "by", "allowed", "failed"),
    [
        ("psnr", -0.3, {"psnr": 0.5}, []),  # a loss within the allowance
        ("psnr", -0.3, {"psnr": 0.1}, ["psnr"]),
        ("psnr", -0.3, {}, ["psnr"]),  # the primary metric is a gate without being named
        ("flicker", 0.3, {}, []),  # others are gates only if they are named
        ("flicker", 0.3, {"flicker": 0.1}, ["flicker"]),
        ("flicker", 0.3, {"flicker": 0.4}, []),
        ("flicker", -0.3, {"flicker": 0.1}, []),  # lower is better: a gain
        ("psnr", 0.3, {"psnr": 0, "flicker": 0}, []),
    ],
)
def test_a_loss_above_the_allowed_one_fails(
    metric: str, by: float, allowed: dict[str, float], failed: list[str]
) -> None:
    result = compare(scores(), moved(metric, by), allowed)
    assert [key for key, gate in result["gates"].items() if gate["failed"]] == failed
    assert result["worse"] == bool(failed)
    assert result["gates"].keys() == {"psnr", *allowed}


def test_several_gates_are_corrected_and_the_primary_one_is_not() -> None:
    other = scores()
    row = other["windows"]["adapter+reference"]
    for key, sign in (("psnr", -1), ("flicker", 1)):
        row[key] = [value + sign * 0.1 * (1 + 0.01 * i) for i, value in enumerate(row[key])]
    result = compare(scores(), other, {"flicker": 0.0})
    assert result["gates"]["psnr"]["p_holm"] == result["metrics"]["psnr"]["p"]
    assert result["gates"]["psnr"]["failed"]
    assert result["gates"]["flicker"]["failed"]


def test_a_gate_needs_two_recordings() -> None:
    before, after = scores(), moved("flicker", 3)
    for content in (before, after):
        content["clips"] = [{**clip, "source": "s"} for clip in content["clips"]]
    gate = compare(before, after, {"flicker": 0.0})["gates"]["flicker"]
    assert (gate["p_holm"], gate["failed"]) == (None, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psnr", "write METRIC=LOSS"),
        ("psnr=-1", "a loss of at least 0"),
        ("psnr=nan", "a loss of at least 0"),
        ("sharpness=1", "--allow sharpness: not a metric that can be worse; there are psnr, flicker"),
        ("ssim=1", "--allow ssim: not a metric"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(scores(), scores(), allowed_losses([text]))
    with pytest.raises(ConfigError, match="psnr is given twice"):
        allowed_losses(["psnr=1", "psnr=2"])


def test_the_comparison_as_junit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("a", scores()), ("b", moved("psnr", -0.3))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = (tmp_path / "a.json", tmp_path / "b.json", "--junit", tmp_path / "out/junit.xml")
    assert command(monkeypatch, *files, "--allow", "flicker=0.2") == 1
    assert "psnr: allowed loss 0: worse than allowed" in capsys.readouterr().out
    cases = junit(tmp_path / "out/junit.xml")
    assert {name: state for name, (state, _) in cases.items()} == {
        "psnr": "failure",
        "flicker": "passed",
        "sharpness": "skipped",
    }
    assert cases["psnr"][1].startswith("PSNR: B - A = -0.31")
    assert "allowed loss 0, p " in cases["psnr"][1]
    assert command(monkeypatch, *files, "--allow", "psnr=0.5") == 0
    assert junit(tmp_path / "out/junit.xml")["psnr"][0] == "passed"


def test_claims_as_junit(tmp_path: Path) -> None:
    """A gate that fails and a bad symptom are failures; what is inconclusive, a diagnostic that fails, and a symptom
    that warns, are skipped. Control characters of a file name are left out."""
    verdict = {"claim": "PSNR > input & base", "threshold": ">= 0.7 dB"}
    verdict |= {"value": {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 24}}
    outcomes = [("gate", "holds"), ("gate", "fails"), ("gate", "inconclusive"), ("diagnostic", "fails")]
    content = {
        "task": "deblur",
        "adapter": {"path": "a\x01<b>.safetensors", "sha256": None},
        "base": {"name": "nano", "version": "2.3"},
        "verdicts": [
            {**verdict, "name": f"{kind} {outcome}", "kind": kind, "outcome": outcome} for kind, outcome in outcomes
        ],
        "flags": [
            {"symptom": name, "level": level, "reason": "4.7 levels"}
            for name, level in (("noise", "bad"), ("flicker", "warn"), ("frozen", "ok"), ("memory", "bad"))
        ],
    }
    write_claims(tmp_path / "claims.xml", content)
    cases = junit(tmp_path / "claims.xml")
    assert [state for state, _ in cases.values()][:4] == ["passed", "failure", "skipped", "skipped"]
    symptoms = {name: state for name, (state, _) in cases.items() if name.startswith("symptom ")}
    assert symptoms == {"symptom noise": "failure", "symptom flicker": "skipped", "symptom frozen": "passed"}
    assert cases["symptom noise"][1] == "bad: 4.7 levels"
    expected = "gate fails: PSNR > input & base: 1.000 [0.500, 1.500] (n 24), required >= 0.7 dB"
    assert cases["gate fails"][1] == expected
    properties = ElementTree.parse(tmp_path / "claims.xml").iter("property")
    facts = {item.attrib["name"]: item.attrib["value"] for item in properties}
    assert facts == {"adapter": "a<b>.safetensors", "sha256": "", "base": "nano 2.3"}
