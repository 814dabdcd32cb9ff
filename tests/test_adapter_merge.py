"""Adapters are combined, recompressed, merged into a base, and extracted from a merged base."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import load_file, save_file

from iclora_train.adapters import merge_files
from iclora_train.adapters.algebra import combine, recompress, truncated_svd, weight_delta
from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.convert import ReferenceFactors
from iclora_train.adapters.extract import extract
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.fuse import fuse
from iclora_train.adapters.merge_files import merge
from iclora_train.config import ConfigError
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX
from iclora_train.ltx2.weights.safetensors_header import DTYPES, read_header
from scripts.synthetic_checkpoint import write_checkpoint
from tests.adapter_files import (
    AUDIO,
    LTX,
    VIDEO,
    adapter_for,
    deltas,
    relative_error,
    same,
)
from tests.tiny import write_tiny_base

# ---- combine and recompress


def test_a_combination_is_the_sum(spec: BaseSpec) -> None:
    first = adapter_for(spec, VIDEO, rank=3, seed=1, task="deblur", trigger="DEBLUR", fps="24")
    second = adapter_for(spec, VIDEO[2:] + AUDIO, rank=2, seed=2, task="effect", trigger="GLOW", fps="24")
    both = combine([(first, 0.7), (second, -1.5)])
    first_delta, second_delta = deltas(first), deltas(second)
    zero = torch.zeros(())
    names = [*VIDEO, *AUDIO]
    assert same(both, {name: 0.7 * first_delta.get(name, zero) - 1.5 * second_delta.get(name, zero) for name in names})
    assert both.weights[VIDEO[2]][0].shape[0] == 5
    assert both.metadata == {
        **LTX,
        "task": "deblur+effect",
        "trigger": "DEBLUR GLOW",
        "combined": "deblur:0.7 effect:-1.5",
        "fps": "24",
        "rank": "5",
    }
    exact = combine([(first, 0.7), (second, -1.5)], rank=5)
    assert same(exact, deltas(both), 1e-5)


def test_adapters_that_do_not_fit_together_are_refused(spec: BaseSpec) -> None:
    first = adapter_for(spec, VIDEO, seed=1)
    for key, message in (
        ("reference_downscale_factor", r"disagree on reference_downscale_factor \(2, 4\)"),
        ("reference_temporal_scale_factor", r"disagree on reference_temporal_scale_factor \(1, 4\)"),
        ("base_model_version", r"disagree on base_model_version \(2.3, 4\)"),
        ("base_model_family", r"disagree on base_model_family \(ltx, 4\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            combine([(first, 1.0), (adapter_for(spec, VIDEO, 3, 2, **{key: "4"}), 1.0)])
    dev, distilled = (adapter_for(spec, VIDEO, seed=i, base_fingerprint=str(i)) for i in range(2))
    shared = combine([(dev, 1.0), (distilled, 1.0)])  # the dev and distilled bases of LTX share adapters
    assert shared.metadata["base_model_version"] == "2.3"
    nano, other = (adapter_for(spec, VIDEO, base_model_family="nano", base_fingerprint=f) for f in ("0123", "4567"))
    with pytest.raises(ConfigError, match=r"disagree on base_fingerprint \(0123, 4567\)"):
        combine([(nano, 1.0), (other, 1.0)])
    effect = adapter_for(spec, VIDEO, seed=2, reference_downscale_factor="1", adapter_kind="lora")
    both = combine([(effect, 1.0), (first, 1.0)])
    assert (both.downscale, both.in_context) == (2, True)


def test_recompression_is_optimal_for_its_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 20, generator=generator), torch.randn(30, 6, generator=generator)
    u, s, v = torch.linalg.svd(b @ a, full_matrices=False)
    for rank in (1, 4, 6):
        small_a, small_b = recompress(a, b, rank)
        assert (small_a.shape, small_b.shape) == ((rank, 20), (30, rank))
        assert relative_error(small_b @ small_a, (u[:, :rank] * s[:rank]) @ v[:rank]) < 1e-5


def test_truncated_svd_of_a_large_matrix() -> None:
    """With a random start the energy is also optimal for the rank, and a matrix of that rank is recovered."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 150, generator=generator)
    spectrum = torch.linalg.svdvals(noise).square()
    for matrix, expected in (
        (noise, float(spectrum[:8].sum() / spectrum.sum())),
        (noise[:, :8] @ noise[:8], 1.0),
    ):
        a, b, energy = truncated_svd(matrix, 8, torch.Generator().manual_seed(1))
        explained = 1 - float((matrix - b @ a).square().sum() / matrix.square().sum())
        assert energy == pytest.approx(expected, rel=0.01)
        assert explained == pytest.approx(energy, abs=1e-5)


# ---- merge and extract


@pytest.mark.parametrize("fp8", [False, True])
def test_a_merged_file_differs_only_in_the_adapted_linears(tmp_path: Path, spec: BaseSpec, fp8: bool) -> None:
    source = write_checkpoint(tmp_path / "base", "2.3", fp8=fp8)
    first, second = adapter_for(spec, VIDEO + AUDIO, seed=1), adapter_for(spec, VIDEO[:2], rank=2, seed=2)
    out = tmp_path / "merged.safetensors"
    steps: list[tuple[int, int]] = []
    assert merge(str(source), [(first, 0.5), (second, 2.0)], out, lambda *done: steps.append(done)) == 8
    assert steps[-1] == (source.stat().st_size,) * 2
    old, new = load_file(source), load_file(out)
    header_size = int.from_bytes(source.read_bytes()[:8], "little") + 8
    assert out.read_bytes()[:header_size] == source.read_bytes()[:header_size]  # keys, dtypes, shapes, metadata
    change = {name: weight_delta([(a, b, 0.5) for a, b in (first.weights[name],)]) for name in first.weights}
    for name in VIDEO[:2]:
        change[name] += 2.0 * deltas(second)[name]
    changed = {f"{MODEL_PREFIX}{name}.weight": delta for name, delta in change.items()}
    scales = {f"{key}_scale" for key in changed}
    for key, before in old.items():
        if key in changed:
            no_scale = torch.ones(())
            merged = before.float() * old.get(f"{key}_scale", no_scale) + changed[key]
            stored = new[key].float() * new.get(f"{key}_scale", no_scale)
            if before.dtype == torch.bfloat16:
                assert torch.equal(new[key], merged.bfloat16())
            else:
                assert before.dtype == torch.float8_e4m3fn
                assert torch.allclose(stored, merged, rtol=2**-4, atol=float(merged.abs().max()) * 2**-9 / 448)
                assert float(new[key].float().abs().max()) == 448.0
        else:
            assert key in scales or torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (new[key], before)))
    assert BaseSpec.open(str(out)) == BaseSpec.open(str(source))


def test_an_invalid_merge_is_refused(tmp_path: Path, official: Path, spec: BaseSpec) -> None:
    good, other = adapter_for(spec, VIDEO), adapter_for(spec, VIDEO, base_model_version="2.5")
    out = tmp_path / "out.safetensors"
    too_deep = Adapter({"transformer_blocks.9.attn1.to_q": good.weights[VIDEO[0]]}, good.metadata)
    for adapter, message in ((other, r"trained on ltx 2\.5"), (too_deep, r"transformer_blocks\.9\.attn1\.to_q, which")):
        with pytest.raises(ConfigError, match=message):
            merge(str(official), [(adapter, 1.0)], out)
    with pytest.raises(ConfigError, match="is a diffusers folder"):
        merge(str(write_checkpoint(tmp_path / "folder", "2.3", "diffusers")), [(adapter_for(spec, VIDEO), 1.0)], out)
    assert not out.exists()
    out.write_text("precious")
    with pytest.raises(ConfigError, match="exists: choose another name"):
        merge(str(official), [(good, 1.0)], out)
    assert out.read_text() == "precious"


@pytest.mark.parametrize(("fp8", "value"), [(False, 3e38), (False, torch.inf), (True, 3e38)])
def test_a_merge_that_would_be_infinite_writes_nothing(tmp_path: Path, spec: BaseSpec, fp8: bool, value: float) -> None:
    source = write_checkpoint(tmp_path / "base", "2.3", fp8=fp8)
    a, b = adapter_for(spec, VIDEO[:1]).weights[VIDEO[0]]
    huge = Adapter({VIDEO[0]: (torch.full_like(a, value), torch.full_like(b, value))}, LTX)
    with pytest.raises(ConfigError, match=r"attn1.to_q.weight would be infinite or NaN.*its strength, is too large"):
        merge(str(source), [(huge, 1.0)], tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    transformer = BaseModel.open(str(source)).transformer()
    with pytest.raises(ConfigError, match=r"attn1\.to_q: with the adapter the weights are too large"):
        fuse(transformer, [(huge, 1.0)])


def test_a_merged_folder_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk or a kill the same command works: no half folder is in its way."""
    base = str(write_tiny_base(tmp_path / "base"))
    adapter, out = adapter_for(BaseSpec.open(base), VIDEO), tmp_path / "out"
    with monkeypatch.context() as full:
        full.setattr(merge_files, "_write", full_disk)
        with pytest.raises(ConfigError, match=r"the disk is full: make room in .* and run the same command again"):
            merge(base, [(adapter, 1.0)], out)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}
    killed = tmp_path / "out.tmp"  # a killed run leaves this folder
    killed.mkdir()
    (killed / "half.safetensors").write_text("half")
    merge(base, [(adapter, 1.0)], out)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}
    assert {path.name for path in out.iterdir()} == {path.name for path in Path(base).glob("*.safetensors")}


def full_disk(stream: IO[bytes], *_: object) -> None:
    stream.write(b"some bytes")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_merged_adapter_can_be_extracted(tmp_path: Path) -> None:
    base = str(write_tiny_base(tmp_path / "base"))
    tiny = BaseSpec.open(base)
    adapter = adapter_for(tiny, ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2"], rank=4)
    merged = str(tmp_path / "merged")
    merge(base, [(adapter, 0.5)], Path(merged))
    assert {file.name for file in Path(merged).iterdir()} == {f.name for f in Path(base).glob("*.safetensors")}
    expected = {name: 0.5 * change for name, change in deltas(adapter).items()}
    factors = ReferenceFactors(downscale=2)
    extracted = extract(base, merged, 4, factors, "deblur", torch.Generator().manual_seed(0))
    assert same(extracted.adapter, expected, 1e-4)
    assert extracted.total == pytest.approx(1, abs=1e-5)
    assert extracted.not_linear == []
    assert extracted.adapter.metadata["base_model_family"] == "tiny"
    smaller = extract(base, merged, 2, factors, "deblur", torch.Generator().manual_seed(0))
    for name, change in expected.items():
        spectrum = torch.linalg.svdvals(change).square()
        assert smaller.energy[name] == pytest.approx(float(spectrum[:2].sum() / spectrum.sum()), abs=1e-4)
    with pytest.raises(ConfigError, match="the difference to extract is zero"):
        extract(base, base, 4, factors, "deblur", torch.Generator())
    with pytest.raises(ConfigError, match="lacks reference_downscale_factor"):
        extract(base, merged, 4, ReferenceFactors(), "deblur", torch.Generator())


def test_extract_lists_differences_that_an_adapter_cannot_hold(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    tiny = BaseSpec.open(str(base))
    merged = tmp_path / "merged"
    merge(str(base), [(adapter_for(tiny, ["patchify_proj"]), 1.0)], merged)
    key = MODEL_PREFIX + "transformer_blocks.0.scale_shift_table"
    file = next(file for file in merged.iterdir() if key in read_header(file).tensors)
    tensors, metadata = load_file(file), read_header(file).metadata
    save_file(tensors | {key: tensors[key] + 1}, file, metadata)
    extracted = extract(str(base), str(merged), 3, ReferenceFactors(downscale=1), "x", torch.Generator().manual_seed(0))
    assert extracted.not_linear == ["transformer_blocks.0.scale_shift_table"]
    assert list(extracted.adapter.weights) == ["patchify_proj"]
    with pytest.raises(ConfigError, match=r"is not a copy of .*: unknown "):
        extract(
            str(base), str(write_checkpoint(tmp_path / "other", "2.3")), 3, ReferenceFactors(1), "x", torch.Generator()
        )


def test_a_merged_base_is_the_base_with_the_adapter(tmp_path: Path, official: Path, spec: BaseSpec) -> None:
    """The merged file loads like any base and has the changed weights."""
    adapter = adapter_for(spec, VIDEO)
    merge(str(official), [(adapter, 1.0)], tmp_path / "m.safetensors")
    before, after = (BaseModel.open(str(path)).transformer() for path in (official, tmp_path / "m.safetensors"))
    for name, change in deltas(adapter).items():
        moved = after.get_parameter(f"{name}.weight") - before.get_parameter(f"{name}.weight")
        assert relative_error(moved, change) < 0.02  # the file is bf16
    assert DTYPES["BF16"] == load_file(tmp_path / "m.safetensors")[f"{MODEL_PREFIX}{VIDEO[0]}.weight"].dtype
