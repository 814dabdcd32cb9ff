"""Adapter files: invalid files are refused with a reason; import, merge, extract and combine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from peft.tuners.lora import Linear, LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclora_train.adapters.__main__ import main
from iclora_train.adapters.algebra import combine, recompress, truncated_svd, weight_delta
from iclora_train.adapters.base_spec import BaseSpec, require_same_base
from iclora_train.adapters.check import check
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.extract import extract
from iclora_train.adapters.file import Adapter, read, save
from iclora_train.adapters.key_styles import is_audio
from iclora_train.adapters.merge_files import merge
from iclora_train.config import ConfigError
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX
from iclora_train.ltx2.weights.safetensors_header import DTYPES, read_header
from scripts.synthetic.published import TRANSFORMER, renamed, transformer_arguments
from scripts.synthetic_checkpoint import write_checkpoint
from tests.tiny import write_tiny_base

LTX = {"reference_downscale_factor": "2", "base_model_family": "ltx", "base_model_version": "2.3"}
BLOCK = "transformer_blocks.0."
VIDEO = [f"{BLOCK}{name}" for name in ("attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ff.net.0.proj", "ff.net.2")]
AUDIO = [f"{BLOCK}{name}" for name in ("audio_attn1.to_v", "audio_to_video_attn.to_q", "audio_ff.net.2")]
TOP_LEVEL = ["patchify_proj", "adaln_single.linear", "audio_adaln_single.linear", "av_ca_a2v_gate_adaln_single.linear"]
QUERY = "diffusion_model.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LTX-2.3 checkpoint in one official file."""
    return write_checkpoint(tmp_path_factory.mktemp("ltx"), "2.3")


@pytest.fixture(scope="module")
def spec(official: Path) -> BaseSpec:
    return BaseSpec.open(str(official))


def adapter_for(spec: BaseSpec, names: list[str], rank: int = 3, seed: int = 0, **metadata: str) -> Adapter:
    """A random adapter for linears of a base."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in names:
        out_features, in_features = spec.linears[name]
        a, b = torch.randn(rank, in_features, generator=generator), torch.randn(out_features, rank, generator=generator)
        weights[name] = (a, 0.1 * b)
    return Adapter(weights, {**LTX, **spec.metadata, **metadata})


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors with the keys of our format."""
    pairs = adapter.weights.items()
    a = {f"diffusion_model.{name}.lora_A.weight": a for name, (a, _) in pairs}
    return a | {f"diffusion_model.{name}.lora_B.weight": b for name, (_, b) in pairs}


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    return {name: b @ a for name, (a, b) in adapter.weights.items()}


def same(adapter: Adapter, expected: dict[str, Tensor], tolerance: float = 1e-6) -> bool:
    """Whether the product B A of every linear is as expected, within `tolerance` of the largest entry."""
    assert adapter.weights.keys() == expected.keys()
    return all(relative_error(b @ a, expected[name]) < tolerance for name, (a, b) in adapter.weights.items())


def relative_error(result: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected entry."""
    return float((result.float() - expected.float()).abs().max() / expected.float().abs().max())


def write(path: Path, changes: dict[str, Tensor | None], metadata: dict[str, str] | None = None) -> Path:
    """A small adapter file with some keys changed or (None) removed."""
    tensors: dict[str, Tensor | None] = {
        f"{QUERY}.lora_A.weight": torch.ones(2, 4),
        f"{QUERY}.lora_B.weight": torch.ones(4, 2),
        **changes,
    }
    save_file({key: t for key, t in tensors.items() if t is not None}, path, LTX if metadata is None else metadata)
    return path


NO_WEIGHTS = {f"{QUERY}.lora_A.weight": None, f"{QUERY}.lora_B.weight": None}
BARE_QUERY = QUERY.removeprefix("diffusion_model.")
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
        ({}, "metadata lacks reference_downscale_factor"),
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
        (Adapter({}, {"reference_downscale_factor": "1"}), "metadata lacks base_model_family"),
    ],
)
def test_an_adapter_of_another_base_is_reported(tmp_path: Path, spec: BaseSpec, adapter: Adapter, message: str) -> None:
    good = adapter_for(spec, [VIDEO[2]])
    save(tmp_path / "a.safetensors", Adapter(good.weights | adapter.weights, adapter.metadata))
    assert check(tmp_path / "a.safetensors") == []
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


# ---- files of other programs


def kohya(expected: Adapter, path: Path) -> Adapter:
    """lora_down, lora_up and alpha = rank / 2: the weight difference is half of `expected`."""
    tensors = {}
    for name, (a, b) in expected.weights.items():
        flat = "lora_unet_" + name.replace(".", "_")
        alpha = torch.tensor(a.shape[0] / 2)
        tensors |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b, f"{flat}.alpha": alpha}
    save_file(tensors, path, {"ss_reference_downscale_factor": "2", "ss_network_alpha": "1.5"})
    return Adapter({name: (a, b / 2) for name, (a, b) in expected.weights.items()}, expected.metadata)


def peft(expected: Adapter, path: Path, rank_stabilised: bool = False) -> Adapter:
    """A folder as peft writes it; alpha is 6, for attn2.to_k 12; ranks are 3."""
    names = {"A": "lora_A", "B": "lora_B"}
    tensors = {
        f"base_model.model.{name}.{names[side]}.default.weight": factor
        for name, pair in expected.weights.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, path, {"format": "pt"})
    settings = {"r": 3, "lora_alpha": 6, "alpha_pattern": {"attn2.to_k": 12}, "use_rslora": rank_stabilised}
    path.with_name("adapter_config.json").write_text(json.dumps(settings))
    divisor = math.sqrt(3) if rank_stabilised else 3
    alpha = {name: 12 if name.endswith("attn2.to_k") else 6 for name in expected.weights}
    return Adapter({n: (a, b * alpha[n] / divisor) for n, (a, b) in expected.weights.items()}, expected.metadata)


def diffusers(expected: Adapter, path: Path) -> Adapter:
    """diffusers' names, and its metadata with alpha 6 at rank 3: the weight difference is twice `expected`."""
    tensors = {}
    for name, (a, b) in expected.weights.items():
        module = "transformer." + renamed(f"{name}.weight", TRANSFORMER).removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    config = json.dumps({"transformer.r": 3, "transformer.lora_alpha": 6})
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": config})
    return Adapter({name: (a, 2 * b) for name, (a, b) in expected.weights.items()}, expected.metadata)


def bare(expected: Adapter, path: Path) -> Adapter:
    tensors = {key.removeprefix("diffusion_model."): tensor for key, tensor in tensors_of(expected).items()}
    save_file(tensors, path, {"reference_downscale_factor": "2.0"})
    return expected


def official_trainer(expected: Adapter, path: Path) -> Adapter:
    tensors = {key: tensor.bfloat16() for key, tensor in tensors_of(expected).items()}
    save_file(tensors, path, {"format": "pt", "reference_downscale_factor": "2"})
    return Adapter(
        {name: (a.bfloat16().float(), b.bfloat16().float()) for name, (a, b) in expected.weights.items()},
        expected.metadata,
    )


def peft_rank_stabilised(expected: Adapter, path: Path) -> Adapter:
    return peft(expected, path, rank_stabilised=True)


@pytest.mark.parametrize("style", [kohya, peft, peft_rank_stabilised, diffusers, bare, official_trainer])
@pytest.mark.parametrize("with_base", [True, False])
def test_adapters_of_other_programs_are_imported(
    tmp_path: Path, spec: BaseSpec, style: Callable[[Adapter, Path], Adapter], with_base: bool
) -> None:
    """For every style, the converted file has the weight difference of the original, alpha included, and passes
    check."""
    names = VIDEO + AUDIO + (TOP_LEVEL if with_base or style is not kohya else [])
    expected = style(adapter_for(spec, names), tmp_path / "foreign.safetensors")
    base = spec if with_base else None
    imported = import_adapter(tmp_path / "foreign.safetensors", base, ReferenceFactors(downscale=2))
    assert same(imported, deltas(expected))
    assert imported.downscale == 2
    assert not any("alpha" in key or key.startswith("ss_ref") or "_metadata" in key for key in imported.metadata)
    save(tmp_path / "ours.safetensors", imported)
    assert check(tmp_path / "ours.safetensors", base) == []


def test_a_missing_reference_factor_must_be_set(tmp_path: Path, spec: BaseSpec) -> None:
    path = tmp_path / "a.safetensors"
    adapter = adapter_for(spec, VIDEO)
    for style in (kohya, bare):  # "2" under musubi's name, and "2.0"
        style(adapter, path)
        assert import_adapter(path).metadata["reference_downscale_factor"] == "2"
    for factor, message in ((None, "lacks reference_downscale_factor"), ("0.5", "'0.5' must be a whole number")):
        save_file(tensors_of(adapter), path, {} if factor is None else {"reference_downscale_factor": factor})
        with pytest.raises(ConfigError, match=r"a\.safetensors: metadata") as caught:
            import_adapter(path)
        assert message in str(caught.value)
        assert import_adapter(path, factors=ReferenceFactors(downscale=2, temporal=4)).temporal_scale == 4
    save_file(tensors_of(adapter), path, {})
    plain_lora = import_adapter(path, factors=ReferenceFactors(reference=False))
    assert (plain_lora.in_context, plain_lora.downscale) == (False, 1)
    assert import_adapter(path, factors=ReferenceFactors(downscale=1)).in_context


def test_an_import_for_another_base_is_refused(tmp_path: Path, spec: BaseSpec) -> None:
    path = tmp_path / "a.safetensors"
    save(path, adapter_for(spec, VIDEO, base_model_version="2.0"))
    assert import_adapter(path).metadata["base_model_version"] == "2.0"
    with pytest.raises(ConfigError, match=r"was trained on ltx 2\.0, this base is ltx 2\.3"):
        import_adapter(path, spec)
    save_file({"lora_unet_mid_block_attn.lora_down.weight": torch.ones(2, 2)}, path, {})
    with pytest.raises(
        ConfigError, match=r"'lora_unet_mid_block_attn.lora_down.weight' has no supported adapter style"
    ):
        import_adapter(path, spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{QUERY}.alpha": torch.ones(2)}, "alpha of transformer_blocks.0.attn1.to_q has shape (2,)"),
        (NO_WEIGHTS | {f"{QUERY}.alpha": torch.ones(())}, "attn1.to_q has alpha and no weights"),
        (
            {f"{QUERY}.dora_scale": torch.ones(4)},
            "has no supported adapter style; is it a plain LoRA (no DoRA, LoHa, LoKr)",
        ),
        ({f"{BARE_QUERY}.lora_A.weight": torch.ones(2, 4)}, "names transformer_blocks.0.attn1.to_q for a second time"),
        ({f"{QUERY}.lora_B.weight": None}, "has lora_A without lora_B"),
    ],
)
def test_an_adapter_that_cannot_be_converted_is_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    with pytest.raises(ConfigError, match=r"a\.safetensors") as caught:
        import_adapter(write(tmp_path / "a.safetensors", changes))
    assert message in str(caught.value)


def test_adapter_config_applies_to_peft_style_keys_only(tmp_path: Path, spec: BaseSpec) -> None:
    """Our own file does not change its meaning next to an adapter_config.json."""
    expected = adapter_for(spec, VIDEO)
    peft(expected, tmp_path / "foreign.safetensors")
    save(tmp_path / "ours.safetensors", expected)
    assert same(import_adapter(tmp_path / "ours.safetensors", spec), deltas(expected))


# ---- our file in diffusers


def test_diffusers_loads_our_file_with_the_same_weight_difference(
    tmp_path: Path, official: Path, spec: BaseSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """Every module, including audio, loads without a warning. A file without the prefix gives a
    warning, which shows that the check works."""
    adapter = adapter_for(spec, [name for name in spec.linears if "connector" not in name])
    save(tmp_path / "a.safetensors", adapter)
    bare(adapter, tmp_path / "bare.safetensors")
    with safe_open(official, framework="pt") as opened:
        section = json.loads(opened.metadata()["config"])["transformer"]
    model = LTX2VideoTransformer3DModel(**transformer_arguments(section))
    model.load_lora_adapter(LTX2Pipeline.lora_state_dict(str(tmp_path / "bare.safetensors")), prefix="transformer")
    assert "No LoRA keys" in caplog.text
    caplog.clear()
    model.load_lora_adapter(LTX2Pipeline.lora_state_dict(str(tmp_path / "a.safetensors")), prefix="transformer")
    assert caplog.records == []
    loaded = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert len(loaded) == len(adapter.weights)
    for name, (a, b) in adapter.weights.items():
        module = loaded[renamed(f"{name}.weight", TRANSFORMER).removesuffix(".weight")]
        assert isinstance(module, Linear)
        delta = module.get_delta_weight(*module.active_adapters)
        assert relative_error(delta.detach(), b @ a) < 1e-6


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
            combine([(first, 1.0), (adapter_for(spec, VIDEO, seed=2, **{key: "4"}), 1.0)])
    dev, distilled = (adapter_for(spec, VIDEO, seed=i, base_fingerprint=str(i)) for i in range(2))
    assert (
        combine([(dev, 1.0), (distilled, 1.0)]).metadata["base_model_version"] == "2.3"
    )  # the dev and distilled bases of LTX share adapters
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
    assert "8 linears, 3 of them audio modules, which this program ignores; rank 3; reference factor 2" in out
    assert run("check", ours, "--base", official, capsys=capsys)[0] == 0
    twice = ("--adapter", ours, "1.5", "--adapter", ours, "0.5")
    assert run("combine", *twice, "--rank", "3", both, capsys=capsys)[0] == 0
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
