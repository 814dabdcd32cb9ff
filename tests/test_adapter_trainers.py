"""Files of every trainer: official files are used as they are, other key styles are read, other models are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from iclora_train.adapters.__main__ import main
from iclora_train.adapters.algebra import combine
from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.check import check, notes
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter, read
from iclora_train.adapters.fuse import linears_for
from iclora_train.adapters.metadata import OTHER_NAMES
from iclora_train.config import ConfigError
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.weights.key_names import official_from_diffusers
from tests.adapter_files import AUDIO, PUBLISHED, TOP_LEVEL, VIDEO, adapter_for, deltas, same, tensors_of

NAMES = VIDEO + AUDIO + TOP_LEVEL
CONNECTOR = "video_embeddings_connector.transformer_1d_blocks.0.attn1.to_out.0"
Write = Callable[[Adapter, Path], float]  # writes a file; returns the scale that it gives to B


def write_keys(adapter: Adapter, path: Path, a: str, b: str, alpha: float | None = None, **metadata: str) -> float:
    """a, b: keys of the two factors with {} for the module, or {_} for the module with underscores."""
    tensors: dict[str, Tensor] = {}
    for name, (lora_a, lora_b) in adapter.weights.items():
        flat = name.replace(".", "_")
        tensors |= {a.format(name, _=flat): lora_a, b.format(name, _=flat): lora_b}
        if alpha is not None:
            tensors[a.format(name, _=flat).split(".lora_")[0] + ".alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata or None)
    return 1.0 if alpha is None else alpha / next(iter(adapter.weights.values()))[0].shape[0]


def musubi(adapter: Adapter, path: Path) -> float:
    """networks/lora.py of AkaneTendo25/musubi-tuner, v2v preset; a factor of 1 is not written."""
    keys = ("lora_unet_model_{_}.lora_down.weight", "lora_unet_model_{_}.lora_up.weight")
    metadata = {"ss_v2v_training": "True", "ss_base_model_version": "ltx2_v1", "modelspec.architecture": "LTX2/lora"}
    return write_keys(adapter, path, *keys, alpha=6, **metadata, ss_network_alpha="6")


def musubi_with_factor(adapter: Adapter, path: Path) -> float:
    keys = ("lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight")
    return write_keys(adapter, path, *keys, alpha=1.5, ss_reference_downscale_factor="2")


def simpletuner(adapter: Adapter, path: Path) -> float:
    """`lora_format: comfyui` of SimpleTuner: our prefix, diffusers' module names, alpha tensors."""
    diffusers = {"patchify_proj": "proj_in", "adaln_single.linear": "time_embed.linear"}
    renamed = Adapter({diffusers.get(name, name): factors for name, factors in adapter.weights.items()})
    assert official_from_diffusers("proj_in.weight") == "patchify_proj.weight"
    return write_keys(renamed, path, "diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", alpha=12)


def ai_toolkit(adapter: Adapter, path: Path) -> float:
    keys = ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight")
    return write_keys(adapter, path, *keys, ss_base_model_version="ltx2", format="pt")


def compiled(adapter: Adapter, path: Path) -> float:
    """A state dict that was saved without unwrapping DDP and torch.compile."""
    prefix = "module._orig_mod.base_model.model."
    return write_keys(adapter, path, prefix + "{}.lora_A.default.weight", prefix + "{}.lora_B.default.weight")


def simpletuner_of_2024(adapter: Adapter, path: Path) -> float:
    prefix = "transformer.base_model.model."
    return write_keys(adapter, path, prefix + "{}.lora.down.weight", prefix + "{}.lora.up.weight")


def old_diffusers(adapter: Adapter, path: Path) -> float:
    return write_keys(adapter, path, "transformer.{}.lora.down.weight", "transformer.{}.lora.up.weight")


def bare_factors(adapter: Adapter, path: Path) -> float:
    """Parameters instead of linears, as ComfyUI reads for Mochi."""
    return write_keys(adapter, path, "diffusion_model.{}.lora_A", "diffusion_model.{}.lora_B")


def official_key_of_the_base(adapter: Adapter, path: Path) -> float:
    return write_keys(adapter, path, "model.diffusion_model.{}.lora_A.weight", "model.diffusion_model.{}.lora_B.weight")


def lycoris(adapter: Adapter, path: Path) -> float:
    return write_keys(adapter, path, "lycoris_{_}.lora_down.weight", "lycoris_{_}.lora_up.weight", alpha=3)


STYLES: list[Write] = [
    *(musubi, musubi_with_factor, simpletuner, ai_toolkit, compiled, old_diffusers, bare_factors),
    *(official_key_of_the_base, lycoris, simpletuner_of_2024),
]


@pytest.mark.parametrize("write", STYLES)
@pytest.mark.parametrize("with_base", [True, False])
def test_the_keys_of_every_trainer_are_read(tmp_path: Path, spec: BaseSpec, write: Write, with_base: bool) -> None:
    """Every module, connectors included, and alpha; with a base and without one."""
    base = spec if with_base else None
    names = [*NAMES, *([CONNECTOR] if with_base else [])]
    adapter = adapter_for(base or PUBLISHED, names)
    scale = write(adapter, tmp_path / "a.safetensors")
    imported = import_adapter(tmp_path / "a.safetensors", base, ReferenceFactors(downscale=2))
    assert same(imported, {name: scale * delta for name, delta in deltas(adapter).items()})


def test_musubi_writes_the_connector_without_its_stream(tmp_path: Path, spec: BaseSpec) -> None:
    adapter = adapter_for(spec, [CONNECTOR])
    (a, b), flat = adapter.weights[CONNECTOR], CONNECTOR.removeprefix("video_").replace(".", "_")
    tensors = {f"lora_unet_{flat}.lora_down.weight": a, f"lora_unet_{flat}.lora_up.weight": b}
    save_file(tensors, tmp_path / "a.safetensors")
    for base in (spec, None):
        assert same(import_adapter(tmp_path / "a.safetensors", base, ReferenceFactors(1)), deltas(adapter))


def test_the_reference_factor_of_every_trainer(tmp_path: Path) -> None:
    """musubi-tuner and Lightricks' trainer write a factor other than 1 only, under several names."""
    path, tensors = tmp_path / "a.safetensors", tensors_of(adapter_for(PUBLISHED, VIDEO))
    for metadata, expected in (
        ({"reference_spatial_scale_factor": "2"}, (2, 1)),
        ({"ss_reference_downscale_factor": "4", "ss_reference_temporal_scale_factor": "2"}, (4, 2)),
        ({"reference_downscale_factor": "2.0"}, (2, 1)),
        ({"ss_v2v_training": "True"}, (1, 1)),
    ):
        save_file(tensors, path, metadata)
        imported = import_adapter(path)
        assert (imported.downscale, imported.temporal_scale) == expected
        assert not {name for names in OTHER_NAMES.values() for name in names} & imported.metadata.keys()
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"Give --downscale 1 for an IC-LoRA whose reference had the clip's size"):
        import_adapter(path)


# ---- official files


def official_file(path: Path, spec: BaseSpec, names: list[str] = VIDEO, **metadata: str) -> Adapter:
    """A file as Lightricks publishes it: bf16, no base, and a factor only if it is not 1."""
    adapter = adapter_for(spec, names)
    save_file({key: tensor.bfloat16() for key, tensor in tensors_of(adapter).items()}, path, metadata or None)
    return adapter


def test_an_official_file_is_valid(tmp_path: Path, spec: BaseSpec, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ltx-2-19b-ic-lora-mine.safetensors"
    official_file(path, spec)
    assert check(path, spec) == []
    factor, base = notes(path, read(path), spec)
    assert "every program takes 1" in factor
    assert (
        "its linears fit ltx 2.3, which is used; its name says LTX-2. LTX-2, 2.3 and 2.5 have linears of equal" in base
    )
    assert read(path).downscale == 1
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(path)])  # without a base the tiny model of this test is not LTX-2
    assert "takes 32 features, in LTX-2 it takes 4096" in capsys.readouterr().err


def test_an_official_file_combines_with_ours(tmp_path: Path, spec: BaseSpec) -> None:
    """It fits the base that the other adapter declares, and its missing factor does not contradict a declared one."""
    ours = adapter_for(spec, VIDEO)
    official_file(tmp_path / "a.safetensors", spec)
    both = combine([(read(tmp_path / "a.safetensors"), 0.5), (ours, 1.0)])
    assert both.downscale == ours.downscale == 2
    assert both.metadata["base_model_version"] == "2.3"


@pytest.mark.parametrize("names", [["audio_attn1.to_q", "audio_ff.net.2"], ["audio_to_video_attn.to_q"]])
def test_an_adapter_without_a_video_linear_is_refused_by_its_name(
    official: Path, spec: BaseSpec, names: list[str]
) -> None:
    transformer = BaseModel.open(str(official)).transformer()
    adapter = adapter_for(spec, [f"transformer_blocks.0.{name}" for name in names])
    message = f"only the audio stream or the cross-attention between audio and video .*{names[0]}"
    with pytest.raises(ConfigError, match=message):
        linears_for(transformer, adapter)
    with pytest.raises(ConfigError, match=r"a linear of the text connectors.*merge"):
        linears_for(transformer, adapter_for(spec, [*VIDEO, CONNECTOR]))


# ---- other models and other kinds of adapters


@pytest.mark.parametrize(
    ("module", "model"),
    [
        ("diffusion_model.blocks.0.self_attn.q", "Wan"),
        ("transformer.blocks.0.attn1.to_q", "Wan"),
        ("lora_unet_blocks_0_cross_attn_k", "Wan"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "HunyuanVideo"),
        ("diffusion_model.double_blocks.0.img_attn_qkv", "HunyuanVideo"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "FLUX"),
        ("transformer.transformer_blocks.0.attn.to_q", "FLUX"),
        ("transformer.transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", "Stable Diffusion"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "a text encoder"),
        ("diffusion_model.layers.0.attention.qkv", "Z-Image"),
        ("transformer.transformer_blocks.8.norm1_context.linear", ""),
        ("diffusion_model.unheard_of", ""),
    ],
)
def test_an_adapter_of_another_model_is_refused_by_its_name(
    tmp_path: Path, spec: BaseSpec, module: str, model: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{module}.lora_down.weight": torch.ones(2, 8), f"{module}.lora_up.weight": torch.ones(8, 2)}, path)
    for base in (None, spec):
        with pytest.raises(ConfigError) as caught:
            import_adapter(path, base, ReferenceFactors(1))
        assert model in str(caught.value)
        assert ("LTX-2 has no linear" if base is None else "which the base does not have") in str(caught.value)


def test_an_adapter_with_the_names_but_not_the_sizes_of_ltx2_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    key = "diffusion_model.transformer_blocks.{}.attn1.to_q.lora_{}.weight"
    for block, width, message in (
        (0, 2048, "takes 2048 features, in LTX-2 it takes 4096"),
        (48, 4096, "has 48 blocks"),
    ):
        tensors = {key.format(block, "A"): torch.ones(2, width), key.format(block, "B"): torch.ones(width, 2)}
        save_file(tensors, path)
        with pytest.raises(ConfigError, match=message):
            import_adapter(path, None, ReferenceFactors(1))
        assert any(message in finding for finding in check(path))
    save_file(tensors_of(adapter_for(PUBLISHED, VIDEO)), path, {"ss_base_model_version": "wan_v2.1"})
    with pytest.raises(ConfigError, match=r"ss_base_model_version='wan_v2.1': the adapter is for another model"):
        import_adapter(path, None, ReferenceFactors(1))


def test_the_text_projection_is_named(tmp_path: Path) -> None:
    """Early files of musubi-tuner hold it; ComfyUI prints only "lora key not loaded"."""
    path, key = tmp_path / "a.safetensors", "text_embedding_projection.aggregate_embed.lora_{}.weight"
    save_file({key.format("A"): torch.ones(2, 4), key.format("B"): torch.ones(4, 2)}, path)
    with pytest.raises(ConfigError, match="belongs to the text projection, which is not adapted here"):
        import_adapter(path, None, ReferenceFactors(1))


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("hada_w1_a", "LoHa"),
        ("magnitude", "DoRA with other keys"),
        ("oft_blocks", "OFT"),
        ("oft_R.weight", "OFT"),
        ("diff", "full weight differences"),
        ("diff_b", "full weight differences"),
        ("a1.weight", "GLoRA"),
        ("lora_mid.weight", "LoCon"),
        ("lora_B.default.bias", "LoRA with biases"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_its_name(tmp_path: Path, ending: str, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    module = "lora_unet_model_transformer_blocks_0_attn1_to_q"
    save_file({f"{module}.{ending}": torch.ones(2, 2), f"{module}.alpha": torch.ones(())}, path)
    with pytest.raises(ConfigError, match=rf"{ending}' is of another kind of adapter \({kind}.*then `extract`"):
        import_adapter(path, None, ReferenceFactors(1))
    assert any(f"another kind of adapter ({kind}" in finding for finding in check(path))


def test_a_dora_of_peft_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "transformer." + k.removeprefix("diffusion_model."): t
        for k, t in tensors_of(adapter_for(PUBLISHED, VIDEO)).items()
    }
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})})
    with pytest.raises(ConfigError, match="has use_dora, and the file lacks the magnitudes of a DoRA"):
        import_adapter(path, None, ReferenceFactors(1))
