"""Adapter files: invalid files are refused with a reason, and the commands on adapters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iclora_train.adapters.__main__ import main
from iclora_train.adapters.base_spec import BaseSpec, require_same_base
from iclora_train.adapters.check import check
from iclora_train.adapters.file import Adapter, read, save
from iclora_train.adapters.key_styles import is_audio
from iclora_train.config import ConfigError
from tests.adapter_files import (
    AUDIO,
    BARE_QUERY,
    BLOCK,
    LTX,
    NO_WEIGHTS,
    QUERY,
    TOP_LEVEL,
    VIDEO,
    adapter_for,
    deltas,
    kohya,
    same,
    write,
)

PAIR = {".lora_A.weight": torch.ones(2, 4), ".lora_B.weight": torch.ones(4, 2)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            NO_WEIGHTS | {BARE_QUERY + end: t for end, t in PAIR.items()},
            "lora_A.weight' and 1 like it: the prefix diffusion_model.",
        ),
        ({f"{QUERY}.alpha": torch.ones(())}, f"key '{QUERY}.alpha': alpha is not baked into lora_B"),
        ({f"{QUERY}.lora_A.default.weight": torch.ones(2, 4)}, "to_q.lora_A.default.weight': peft's adapter name"),
        ({f"{QUERY}.lora_down.weight": torch.ones(2, 4)}, "to_q.lora_down.weight': only ComfyUI loads lora_down"),
        ({f"lora_unet_{BARE_QUERY}.lora_up.weight": torch.ones(2, 4)}, "a kohya-style key"),
        ({f"base_model.model.{BARE_QUERY}.lora_A.weight": torch.ones(2, 4)}, "a peft-style key"),
        ({f"transformer.{BARE_QUERY}.lora_A.weight": torch.ones(2, 4)}, "a diffusers-style key"),
        ({"transformer_blocks.1.attn1.to_q.lora_A.weight": torch.ones(2, 4)}, "with and without the prefix"),
        (
            {"diffusion_model.something": torch.ones(1)},
            "key 'diffusion_model.something': is not diffusion_model.<module>",
        ),
        ({f"{QUERY}.lora_B.weight": None}, "attn1.to_q has lora_A without lora_B"),
        ({f"{QUERY}.lora_A.weight": None}, "attn1.to_q has lora_B without lora_A"),
        ({f"{QUERY}.lora_B.weight": torch.ones(4, 3)}, "to_q has A (2, 4) and B (4, 3), which do not multiply"),
        ({f"{QUERY}.lora_B.weight": torch.ones(4, 2, 1)}, "to_q has A (2, 4) and B (4, 2, 1)"),
        ({f"{QUERY}.lora_A.weight": torch.ones(0, 4), f"{QUERY}.lora_B.weight": torch.ones(4, 0)}, "do not multiply"),
        ({f"{QUERY}.lora_B.weight": torch.zeros(4, 2)}, "every lora_B is zero"),
        ({f"{QUERY}.lora_A.weight": torch.full((2, 4), torch.nan)}, "to_q.lora_A.weight holds NaN or infinity"),
        ({f"{QUERY}.lora_B.weight": torch.full((4, 2), torch.inf)}, "to_q.lora_B.weight holds NaN or infinity"),
        ({f"{QUERY}.lora_B.weight": torch.ones(4, 2).to(torch.float8_e4m3fn)}, "to_q.lora_B.weight is stored as"),
        (NO_WEIGHTS, "holds no adapter weights"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    path = write(tmp_path / "a.safetensors", changes)
    findings = check(path)
    assert any(message in finding for finding in findings)
    assert set(findings) <= set(check(path, BaseSpec("ltx", "2.3")))  # a check against a base reports them too
    with pytest.raises(ConfigError, match=r"a\.safetensors") as caught:
        read(path)
    assert findings[0] in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"reference_downscale_factor": "0"}, "reference_downscale_factor='0' must be a whole number"),
        ({"reference_downscale_factor": "0.5"}, "'0.5' must be a whole number"),
        ({"reference_downscale_factor": "2.0"}, "'2.0' must be a whole number"),
        ({"reference_downscale_factor": "1", "reference_temporal_scale_factor": "x"}, "temporal_scale_factor='x' must"),
    ],
)
def test_wrong_metadata_is_refused(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = write(tmp_path / "a.safetensors", {}, {"format": "pt", **metadata})
    assert any(message in finding for finding in check(path))
    with pytest.raises(ConfigError, match=r"a\.safetensors") as caught:
        read(path)
    assert message in str(caught.value)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("hello")
    for name in ("a.safetensors", "none.safetensors"):
        with pytest.raises(ConfigError, match="is not a readable safetensors file"):
            read(tmp_path / name)


def test_header_is_padded_to_eight_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, Adapter({"x": (torch.ones(2, 4), torch.ones(4, 2))}, LTX))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    assert next(iter(json.loads(data[8 : 8 + size]))) == "__metadata__"


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Adapter({"transformer_blocks.7.attn1.to_q": (torch.ones(1, 1), torch.ones(1, 1))}, LTX), "(it has 2 blocks)"),
        (
            Adapter({f"{BLOCK}attn3.to_q": (torch.ones(1, 1), torch.ones(1, 1))}, LTX),
            "attn3.to_q, which the base does not",
        ),
        (
            Adapter({f"{BLOCK}audio_attn3.to_q": (torch.ones(1, 1), torch.ones(1, 1))}, LTX),
            "audio_attn3.to_q, which the",
        ),
        (
            Adapter({VIDEO[0]: (torch.ones(1, 9), torch.ones(5, 1))}, LTX),
            "attn1.to_q: the adapter fits a linear 9 -> 5",
        ),
        (Adapter({}, {**LTX, "base_model_version": "2.5"}), "was trained on ltx 2.5, this base is ltx 2.3"),
        (Adapter({}, {**LTX, "base_model_family": "nano"}), "was trained on nano 2.3, this base is ltx 2.3"),
    ],
)
def test_an_adapter_of_another_base_is_reported(tmp_path: Path, spec: BaseSpec, adapter: Adapter, message: str) -> None:
    good = adapter_for(spec, [VIDEO[2]])
    save(tmp_path / "a.safetensors", Adapter(good.weights | adapter.weights, adapter.metadata))
    assert all(finding.startswith("LTX-2 has no linear") for finding in check(tmp_path / "a.safetensors"))
    findings = check(tmp_path / "a.safetensors", spec)
    assert len(findings) == 1
    assert message in findings[0]


def test_an_embedded_base_is_identified_by_its_weights(tmp_path: Path) -> None:
    nano = BaseSpec.open("nano")
    adapter = adapter_for(nano, ["transformer_blocks.0.attn1.to_q"])
    save(tmp_path / "a.safetensors", adapter)
    assert check(tmp_path / "a.safetensors", nano) == []
    require_same_base(tmp_path, adapter, nano.family, nano.version, nano.fingerprint)
    with pytest.raises(ConfigError, match="was trained on other weights of nano"):
        require_same_base(tmp_path, adapter, nano.family, nano.version, "0123")


def test_audio_modules_belong_to_the_file_and_not_to_the_video_stream(tmp_path: Path, spec: BaseSpec) -> None:
    adapter = adapter_for(spec, VIDEO + AUDIO + TOP_LEVEL)
    save(tmp_path / "a.safetensors", adapter)
    assert check(tmp_path / "a.safetensors", spec) == []
    assert set(read(tmp_path / "a.safetensors").audio) == {*AUDIO, *TOP_LEVEL[2:]}
    assert not any(is_audio(name) for name in VIDEO)


# ---- the command


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, output.out, output.err


def test_the_commands_from_an_imported_file_to_a_merged_base(
    tmp_path: Path, official: Path, spec: BaseSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign, ours, both = (tmp_path / f"{name}.safetensors" for name in ("foreign", "ours", "both"))
    expected = kohya(adapter_for(spec, VIDEO + AUDIO), foreign)
    code, out, err = run("check", foreign, capsys=capsys)
    assert (code, out) == (2, "")
    assert all(line.startswith(f"error: {foreign}: ") for line in err.splitlines())
    assert "`python -m iclora_train.adapters convert` writes it in the format that all three load" in err
    code, out, _ = run("convert", foreign, ours, "--base", official, "--dtype", "fp32", capsys=capsys)
    assert code == 0
    assert "8 linears, 3 of them audio modules and cross-attention to audio; rank 3" in out
    assert run("check", ours, "--base", official, capsys=capsys)[0] == 0
    twice = ("--adapter", ours, "1.5", "--adapter", ours, "0.5")
    assert run("combine", *twice, "--rank", "3", "--dtype", "fp32", both, capsys=capsys)[0] == 0
    assert same(read(both), {name: 2 * change for name, change in deltas(expected).items()}, 1e-5)
    merged = tmp_path / "merged.safetensors"
    assert run("merge", official, *twice, merged, capsys=capsys)[:2] == (0, f"{merged}: 8 linears changed\n")
    out_file = tmp_path / "back.safetensors"
    code, out, _ = run("extract", official, merged, out_file, "--rank", "3", "--downscale", "2", capsys=capsys)
    assert code == 0
    assert "the adapter holds 100.00% of the difference's energy; least in transformer_blocks.0." in out
    assert same(read(out_file), {name: 2 * change for name, change in deltas(expected).items()}, 0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "none.safetensors"), "none.safetensors is not a readable safetensors file"),
        (("check", "a.safetensors", "--base", "nowhere"), "'nowhere' is neither a file nor a folder"),
        (("combine", "--adapter", "a.safetensors", "much", "b.safetensors"), "much: the strength must be a number"),
        (("combine", "--rank", "0", "--adapter", "a.safetensors", "1", "b.safetensors"), "--rank 0 must be at least 1"),
        (("convert", "a.safetensors"), "the following arguments are required: out"),
        (("melt",), "invalid choice: 'melt'"),
    ],
)
def test_an_error_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.safetensors", {})
    code, out, err = run(*arguments, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_help_does_not_import_torch() -> None:
    code = "import sys, iclora_train.adapters.__main__ as m; m.parser(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
