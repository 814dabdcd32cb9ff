"""Adapter files are bf16 unless fp32 is asked for, and state how much rounding changed the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iclora_train.adapters.__main__ import main
from iclora_train.adapters.card import write_card
from iclora_train.adapters.file import Adapter, read, save
from iclora_train.adapters.precision import rounding_error, save_rounded
from iclora_train.config import ConfigError
from iclora_train.ltx2.weights.safetensors_header import read_header
from tests.adapter_files import PUBLISHED, VIDEO, adapter_for, deltas


def test_the_rounding_error_is_the_change_of_all_products() -> None:
    adapter = adapter_for(PUBLISHED, VIDEO, rank=8)
    rounded = Adapter({n: (a.bfloat16().float(), b.bfloat16().float()) for n, (a, b) in adapter.weights.items()})
    old, new = deltas(adapter), deltas(rounded)
    change = sum(float((new[n].double() - old[n].double()).square().sum()) for n in old) ** 0.5
    expected = change / sum(float(delta.double().square().sum()) for delta in old.values()) ** 0.5
    assert rounding_error(adapter.weights, torch.bfloat16) == pytest.approx(expected, rel=1e-4)
    assert 0.001 < expected < 0.004  # bf16 has 8 significant bits
    assert rounding_error(adapter.weights, torch.float32) == 0
    assert rounding_error(rounded.weights, torch.bfloat16) == 0


def test_a_file_is_in_bf16_and_says_what_that_changed(tmp_path: Path) -> None:
    adapter, path = adapter_for(PUBLISHED, VIDEO, rank=8), tmp_path / "a.safetensors"
    error = save_rounded(path, adapter, "bf16")
    header = read_header(path)
    assert {tensor.dtype for tensor in header.tensors.values()} == {"BF16"}
    assert float(header.metadata["rounding_error"]) == pytest.approx(error, rel=0.05)
    card = write_card(path)[0].read_text()
    assert f"| change of B A by rounding to bf16 (relative) | {error:.1e} |" in card.splitlines()
    assert save_rounded(path, read(path), "fp32") == 0  # nothing is lost by writing bf16 values as fp32
    assert {tensor.dtype for tensor in read_header(path).tensors.values()} == {"F32"}
    assert "rounding_error" not in read_header(path).metadata


def test_the_commands_take_the_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(source, adapter_for(PUBLISHED, VIDEO))
    for command in (["convert", str(source), str(out)], ["combine", "--adapter", str(source), "0.7", str(out)]):
        for dtype, stored in ((None, "BF16"), ("fp32", "F32")):
            with pytest.raises(SystemExit, match="0"):
                main([*command, *(["--dtype", dtype] if dtype else [])])
            assert {tensor.dtype for tensor in read_header(out).tensors.values()} == {stored}
            assert ("rounding to bf16 changes B A by 0.2" in capsys.readouterr().out) == (dtype is None)


def test_an_infinite_value_is_not_written(tmp_path: Path) -> None:
    adapter = adapter_for(PUBLISHED, VIDEO[:1])
    (a, b) = adapter.weights[VIDEO[0]]
    huge = Adapter({VIDEO[0]: (a, torch.full_like(b, 1e30) * 1e30)}, adapter.metadata)
    with pytest.raises(ConfigError, match=r"a.safetensors is not written: .*lora_B.weight would be infinite or NaN"):
        save(tmp_path / "a.safetensors", huge)
    assert list(tmp_path.iterdir()) == []
