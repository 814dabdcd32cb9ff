"""Checkpoints of every published layout: names and shapes are as published, each layout gives the same base, and an
error names the file, the keys and the remedy."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.types import Geometry
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text.gemma import GemmaTextEncoder
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX
from iclora_train.ltx2.weights.safetensors_header import StoredTensor
from iclora_train.ltx2.weights.versions import detect_version
from scripts.synthetic import published
from scripts.synthetic.configs import SIZES, VERSIONS
from scripts.synthetic.folders import LAYOUTS, SyntheticCheckpoint
from scripts.synthetic.gemma import pack_tiny_gemma, write_gemma
from scripts.synthetic_checkpoint import write_checkpoint

Edit = Callable[[dict[str, Tensor], dict[str, str]], None]
QUERY = f"{MODEL_PREFIX}transformer_blocks.1.attn1.to_q"
PUBLISHED_VAE = {  # from diffusers' convert_ltx2_to_diffusers.py
    "2.0": {
        "block_out_channels": [256, 512, 1024, 2048],
        "layers_per_block": [4, 6, 6, 2, 2],
        "decoder_block_out_channels": [256, 512, 1024],
        "decoder_layers_per_block": [5, 5, 5, 5],
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "upsample_type": ["spatiotemporal", "spatiotemporal", "spatiotemporal"],
        "upsample_residual": [True, True, True],
        "upsample_factor": [2, 2, 2],
        "decoder_spatial_padding_mode": "reflect",
    },
    "2.3": {
        "block_out_channels": [256, 512, 1024, 1024],
        "layers_per_block": [4, 6, 4, 2, 2],
        "decoder_block_out_channels": [256, 512, 512, 1024],
        "decoder_layers_per_block": [4, 6, 4, 2, 2],
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
        "upsample_residual": [False, False, False, False],
        "upsample_factor": [2, 2, 1, 2],
        "decoder_spatial_padding_mode": "zeros",
    },
}
PUBLISHED_VAE["2.5"] = PUBLISHED_VAE["2.3"]
BILLIONS = {"2.0": 18.88, "2.3": 18.99, "2.5": 18.99}  # parameters of the published transformers, both streams


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Tiny checkpoints by version and layout, all with the same weights."""
    root = tmp_path_factory.mktemp("tiny")
    keys = [(version, layout) for version in VERSIONS for layout in LAYOUTS]
    return {key: write_checkpoint(root / "-".join(key), *key) for key in keys}


def edited(file: Path, out: Path, edit: Edit) -> Path:
    """A copy of a file with changed tensors and metadata."""
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    tensors = load_file(file)
    edit(tensors, metadata)
    save_file(tensors, out, metadata)
    return out


def drop(prefix: str) -> Edit:
    def edit(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
        for key in [key for key in tensors if key.startswith(prefix)]:
            del tensors[key]

    return edit


# --- the synthetic checkpoints have the published names and shapes ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", VERSIONS)
def test_names_and_shapes_match_diffusers_models(version: str, size: str) -> None:
    synthetic = SyntheticCheckpoint(version, size)
    section = synthetic.config["transformer"]
    with torch.device("meta"):
        transformer = LTX2VideoTransformer3DModel(**published.transformer_arguments(section))
        connectors = LTX2TextConnectors(**published.connector_arguments(section, synthetic.gemma_layers))
        vae = AutoencoderKLLTX2Video(**published.vae_arguments(synthetic.config["vae"]))
    pairs = [
        (transformer, synthetic.transformer, published.TRANSFORMER),
        (connectors, synthetic.connectors + synthetic.projection, published.CONNECTORS),
    ]
    if size != "comfyui":  # its video VAE is narrower than its latents, which diffusers' class cannot be
        pairs.append((vae, synthetic.vae, published.VAE))
    for model, specs, table in pairs:
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        assert {published.renamed(spec.name, table): spec.shape for spec in specs} == expected
        assert len(specs) == len(expected)
    if size == "full":
        total = sum(math.prod(spec.shape) for spec in synthetic.transformer)
        assert total / 1e9 == pytest.approx(BILLIONS[version], abs=0.005)
        arguments = published.vae_arguments(synthetic.config["vae"])
        assert {key: arguments[key] for key in PUBLISHED_VAE[version]} == PUBLISHED_VAE[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_written_file_is_valid_and_reproducible(
    tiny: dict[tuple[str, str], Path], version: str, tmp_path: Path
) -> None:
    file = tiny[version, "unified"]
    tensors = load_file(file)
    assert all(tensor.isfinite().all() and tensor.any() for tensor in tensors.values())
    assert tensors[f"{QUERY}.weight"].dtype == torch.bfloat16
    assert write_checkpoint(tmp_path / "again", version).read_bytes() == file.read_bytes()
    assert write_checkpoint(tmp_path / "other", version, seed=1).read_bytes() != file.read_bytes()


# --- every layout gives the same base ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_layout_gives_the_same_base(tiny: dict[tuple[str, str], Path], version: str, layout: str) -> None:
    base, reference = BaseModel.open(str(tiny[version, layout])), BaseModel.open(str(tiny[version, "unified"]))
    assert (base.version, base.family, base.embedded) == (version, "ltx", False)
    assert base.geometry == Geometry(channels=8, spatial=32, temporal=8)
    net, expected_net = base.transformer(), reference.transformer()
    assert net.config == expected_net.config
    assert not any(p.requires_grad or p.is_meta for p in net.parameters())
    for (name, result), expected in zip(net.named_parameters(), expected_net.parameters(), strict=True):
        assert torch.equal(result, expected), name
    with torch.no_grad():
        video = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        assert torch.equal(base.vae().encode(video), reference.vae().encode(video))


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_video_stream_is_read(tiny: dict[tuple[str, str], Path], version: str) -> None:
    for layout in LAYOUTS:
        base = BaseModel.open(str(tiny[version, layout]))
        names = [name for name, _ in base.checkpoint.tensors("transformer")]
        assert set(names) == set(base.transformer().state_dict())
        assert not [name for name in names if "audio" in name or "av_ca" in name or "a2v" in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_transformer_has_the_requested_dtype(tiny: dict[tuple[str, str], Path], dtype: torch.dtype) -> None:
    base = BaseModel.open(str(tiny["2.3", "unified"]))
    assert {p.dtype for p in base.transformer(dtype).parameters()} == {dtype}
    assert all(p.is_meta for p in base.transformer(dtype, "meta").parameters())


def test_the_host_holds_one_tensor_at_a_time(
    tiny: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive_counts: list[int] = []
    refs: list[weakref.ref[Tensor]] = []
    read = StoredTensor.read

    def counting_read(stored: StoredTensor) -> Tensor:
        tensor = read(stored)
        refs.append(weakref.ref(tensor))
        alive_counts.append(sum(ref() is not None for ref in refs))
        return tensor

    monkeypatch.setattr(StoredTensor, "read", counting_read)
    net = BaseModel.open(str(tiny["2.3", "unified"])).transformer(torch.bfloat16)
    assert len(alive_counts) == len(net.state_dict())
    assert max(alive_counts) <= 2  # the tensor that was just read and the previous one


def test_split_files_can_be_named_one_by_one(tiny: dict[tuple[str, str], Path]) -> None:
    folder = tiny["2.5", "split"]
    (model,) = (folder / "diffusion_models").iterdir()
    (vae,) = (folder / "vae").glob("*video-vae*")
    (text,) = (folder / "text_encoders").iterdir()
    base = BaseModel.open(str(model), vae=str(vae), connectors=str(text))
    assert base.name == "ltx-2.5-22b-dev-transformer-bf16"
    assert base.latent_fingerprints == BaseModel.open(str(folder)).latent_fingerprints
    other = BaseModel.open(
        str(model), vae=str(tiny["2.5", "diffusers"] / "vae"), connectors=str(tiny["2.5", "unified"])
    )
    assert other.geometry == base.geometry
    assert other.checkpoint.component("vae").diffusers
    assert other.latent_fingerprints["connectors"] == base.latent_fingerprints["connectors"]


def test_the_version_comes_from_the_metadata_or_else_from_the_switches() -> None:
    assert [
        detect_version(text, {}, "x") for text in ("2.0.0", "2", "2.3.0", "2.3.rc1", "2.3-rc2", "2.5.1", "2.5")
    ] == [*("2.0", "2.0", "2.3", "2.3", "2.3", "2.5", "2.5")]
    sections = [SyntheticCheckpoint(version, "tiny").config["transformer"] for version in VERSIONS]
    assert [detect_version(None, section, "x") for section in sections] == [*VERSIONS]


def test_a_keyframe_embedding_that_the_file_lacks_is_not_built(
    tiny: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    name = f"{MODEL_PREFIX}keyframes_abs_pos_embedding"
    file = edited(tiny["2.5", "unified"], tmp_path / "a.safetensors", drop(name))
    assert BaseModel.open(str(tiny["2.5", "unified"])).transformer().keyframes_abs_pos_embedding is not None
    assert BaseModel.open(str(file)).transformer().keyframes_abs_pos_embedding is None


def test_latent_fingerprints_depend_on_the_weights_and_not_on_the_files(
    tiny: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    unified, split = (BaseModel.open(str(tiny["2.3", layout])) for layout in ("unified", "split"))
    assert unified.latent_fingerprints == split.latent_fingerprints
    assert sorted(unified.latent_fingerprints) == ["connectors", "vae"]

    def change(key: str) -> Edit:
        return lambda tensors, _: tensors[key].view(-1)[:1].add_(1)

    changed = edited(tiny["2.3", "unified"], tmp_path / "a.safetensors", change(f"{QUERY}.weight"))
    assert BaseModel.open(str(changed)).latent_fingerprints == unified.latent_fingerprints
    assert BaseModel.open(str(changed)).fingerprint != unified.fingerprint
    changed = edited(tiny["2.3", "unified"], tmp_path / "b.safetensors", change("vae.encoder.conv_in.conv.bias"))
    assert BaseModel.open(str(changed)).latent_fingerprints != unified.latent_fingerprints
    gemma = write_gemma(tmp_path / "gemma")
    with_gemma = BaseModel.open(str(tiny["2.3", "unified"]), text_encoder=str(gemma)).latent_fingerprints
    assert with_gemma == unified.latent_fingerprints | {"text_encoder": with_gemma["text_encoder"]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_captions_are_encoded_for_the_transformer(
    tiny: dict[tuple[str, str], Path], tmp_path: Path, version: str, layout: str
) -> None:
    kind = "gemma4_unified" if version == "2.5" else "gemma3"
    gemma = write_gemma(tmp_path / "gemma", kind, gemma_version="gemma4-12b-ltx-v1")
    base = BaseModel.open(str(tiny[version, layout]), text_encoder=str(gemma))
    features = base.text(torch.float32).encode(["the cat", ""])
    config = base.transformer().config
    assert features.shape == (2, 1024, config.caption_channels if version == "2.0" else config.cross_attention_dim)
    assert not torch.equal(features[0], features[1])
    reference = BaseModel.open(str(tiny[version, "unified"]), text_encoder=str(gemma)).text(torch.float32)
    assert torch.allclose(features, reference.encode(["the cat", ""]), atol=1e-5)
    text = base.text(torch.float32, audio=True)
    assert isinstance(text, GemmaTextEncoder)
    video, audio = text.encode_both(["the cat", ""])
    assert torch.equal(video, features)
    assert audio.shape == (2, 1024, base.transformer(audio=True).config.audio_text_width)
    assert not torch.equal(audio[0], audio[1])


# --- errors name the cause and the remedy ---


def refusal(action: Callable[[], object]) -> str:
    """The message of the ConfigError that an action raises."""
    with pytest.raises(ConfigError) as caught:
        action()
    return str(caught.value)


def refusal_to_open(file: Path, **components: str) -> str:
    return refusal(lambda: BaseModel.open(str(file), **components))


def test_files_of_other_models_are_refused(tiny: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    weight = torch.ones(2, 2)
    save_file({"blocks.0.self_attn.q.weight": weight}, file)
    message = refusal_to_open(file)
    assert "model.safetensors is not an LTX-2 checkpoint" in message
    assert "1 keys, first: blocks.0.self_attn.q.weight" in message
    save_file({f"{MODEL_PREFIX}input_blocks.0.0.weight": weight}, file)
    assert "is not an LTX-2 checkpoint: its metadata lacks config" in refusal_to_open(file)
    save_file({f"{MODEL_PREFIX}input_blocks.0.0.weight": weight}, file, {"config": json.dumps({"unet": {}})})
    assert "has no section transformer" in refusal_to_open(file)
    save_file({f"{MODEL_PREFIX}input_blocks.0.0.weight": weight}, file, {"config": "{"})
    assert "config in its metadata is not JSON" in refusal_to_open(file)
    save_file({"diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight": weight}, file)
    assert "model.safetensors is an adapter" in refusal_to_open(file)
    edited(tiny["2.3", "unified"], file, lambda _, metadata: metadata.update(model_version="3.1.0"))
    message = refusal_to_open(file)
    assert "model_version='3.1.0' is unknown" in message
    assert "2.0, 2.3, 2.5" in message


def test_damaged_files_are_refused(tiny: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    file, whole = tmp_path / "a.safetensors", tiny["2.3", "unified"].read_bytes()
    file.write_bytes(whole[:-100])
    assert (
        f"a.safetensors is truncated: it has {len(whole) - 100} of {len(whole)} bytes; fetch it again"
        in refusal_to_open(file)
    )
    for damaged in (whole[:500], b"", b"no safetensors at all", b"PK\x03\x04" * 100):
        file.write_bytes(damaged)
        assert "a.safetensors is not a readable safetensors file" in refusal_to_open(file)


def test_a_missing_component_names_its_setting(tiny: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folder = tiny["2.5", "split"]
    (model,) = (folder / "diffusion_models").iterdir()
    (vae,) = (folder / "vae").glob("*video-vae*")
    message = refusal_to_open(model)
    assert "holds no vae" in message
    assert "set model.vae to" in message
    message = refusal_to_open(vae)
    assert "holds the vae but no transformer: give it as model.vae" in message
    message = refusal_to_open(model, vae=str(model))
    assert message.startswith(f"model.vae={model} holds no vae")
    assert "model.vae='nowhere' is neither a file nor a folder" in refusal_to_open(model, vae="nowhere")
    message = refusal(BaseModel.open(str(model), vae=str(vae)).text)
    assert "set model.text_encoder" in message
    gemma = str(write_gemma(tmp_path / "gemma", "gemma4_unified", gemma_version="gemma4-12b-ltx-v1"))
    message = refusal(BaseModel.open(str(model), vae=str(vae), text_encoder=gemma).text)
    assert "text_embedding_projection" in message
    assert "model.connectors" in message
    bare = edited(model, tmp_path / "bare.safetensors", drop(f"{MODEL_PREFIX}video_embeddings_connector."))
    bare = edited(bare, tmp_path / "barer.safetensors", drop(f"{MODEL_PREFIX}audio_embeddings_connector."))
    message = refusal(BaseModel.open(str(bare), vae=str(vae), text_encoder=gemma).text)
    assert "holds no connectors; set model.connectors to" in message


def test_two_variants_in_a_folder_are_refused(tiny: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    for name in ("dev", "distilled"):
        shutil.copy(tiny["2.3", "unified"], tmp_path / f"{name}.safetensors")
    message = refusal_to_open(tmp_path)
    assert "dev.safetensors" in message
    assert "distilled.safetensors both hold" in message
    assert "set model.checkpoint to one of them" in message


def test_model_vae_selects_one_of_two_in_the_folder(tiny: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny["2.5", "split"], tmp_path / "ltx")
    (vae,) = (tmp_path / "ltx" / "vae").glob("*video-vae*")
    shutil.copy(vae, vae.with_name("another-video-vae.safetensors"))
    assert "set model.vae to one of them" in refusal_to_open(tmp_path / "ltx")
    assert BaseModel.open(str(tmp_path / "ltx"), vae=str(vae)).checkpoint.component("vae").files == [vae]


def test_the_packed_text_encoder_of_2_5_contains_the_projection(
    tiny: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    folder = tiny["2.5", "split"]
    (model,) = (folder / "diffusion_models").iterdir()
    (vae,) = (folder / "vae").glob("*video-vae*")
    (text,) = (folder / "text_encoders").iterdir()
    gemma = write_gemma(tmp_path / "gemma", "gemma4_unified", gemma_version="gemma4-12b-ltx-v1")
    packed = pack_tiny_gemma(gemma, tmp_path / "packed.safetensors", load_file(text))
    base = BaseModel.open(str(model), vae=str(vae), text_encoder=str(packed))
    expected = BaseModel.open(str(folder), text_encoder=str(gemma)).text(torch.float32).encode(["the cat"])
    assert torch.allclose(base.text(torch.float32).encode(["the cat"]), expected, atol=1e-5)


def test_wrong_keys_are_named_with_their_file(tiny: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    def wrong(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
        del tensors[f"{QUERY}.bias"]
        tensors[f"{QUERY}_extra.weight"] = torch.ones(1)
        tensors[f"{MODEL_PREFIX}proj_out.bias"] = torch.ones(3)

    file = edited(tiny["2.3", "unified"], tmp_path / "a.safetensors", wrong)
    message = refusal(BaseModel.open(str(file)).transformer)
    assert "a.safetensors: the transformer does not fit its config (3 keys" in message
    assert "missing transformer_blocks.1.attn1.to_q.bias" in message
    assert "unknown transformer_blocks.1.attn1.to_q_extra.weight" in message
    assert "proj_out.bias has shape (3,) instead of (8,)" in message


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda tensors, _: tensors.pop(f"{QUERY}.weight_scale"), "1 weights are fp8 without a .weight_scale"),
        (
            lambda tensors, _: tensors.update({f"{QUERY}.weight_scale": torch.ones(32)}),
            "1 weights have a scale that is not one number",
        ),
        (
            lambda tensors, _: tensors.update({f"{QUERY}.weight": tensors[f"{QUERY}.weight"].to(torch.int8)}),
            "1 weights are stored as I8",
        ),
        (lambda tensors, _: tensors.update({f"{QUERY}_x.weight_scale": torch.ones(())}), "to_q_x.weight_scale"),
    ],
    ids=["no-scale", "scale-per-row", "int8", "scale-of-nothing"],
)
def test_unreadable_quantised_weights_are_refused(tmp_path: Path, edit: Edit, problem: str) -> None:
    file = write_checkpoint(tmp_path, "2.3", fp8=True)
    message = refusal(BaseModel.open(str(edited(file, tmp_path / "a.safetensors", edit))).transformer)
    assert problem in message
    assert "transformer_blocks.1.attn1.to_q" in message


def test_quantised_connectors_without_scales_are_refused(tiny: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    name = "text_embedding_projection.video_aggregate_embed.weight"

    def cast(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    gemma = write_gemma(tmp_path / "gemma")
    file = edited(tiny["2.3", "unified"], tmp_path / "a.safetensors", cast)
    message = refusal(BaseModel.open(str(file), text_encoder=str(gemma)).text)
    assert "1 weights are fp8 without a .weight_scale" in message
    assert name in message


def test_incomplete_diffusers_folders_are_refused(tiny: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    def broken(name: str, damage: Callable[[Path], Any]) -> Path:
        shutil.copytree(tiny["2.3", "diffusers"], tmp_path / name)
        damage(tmp_path / name)
        return tmp_path / name

    message = refusal_to_open(broken("a", lambda folder: shutil.rmtree(folder / "transformer")))
    assert "is a diffusers folder without transformer/config.json" in message
    message = refusal_to_open(broken("b", lambda folder: shutil.rmtree(folder / "vae")))
    assert "holds no vae; set model.vae" in message

    def write_flux_config(folder: Path) -> None:
        (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))

    assert "is the config of a FluxTransformer2DModel, not of LTX-2's" in refusal_to_open(
        broken("c", write_flux_config)
    )
    folder = broken("d", lambda folder: next((folder / "transformer").glob("*-00002-of-*")).unlink())
    message = refusal(BaseModel.open(str(folder)).transformer)
    assert "the transformer does not fit its config" in message
    assert "missing transformer_blocks" in message
    folder = broken("e", lambda folder: [file.unlink() for file in (folder / "transformer").glob("*.safetensors")])
    assert "has no .safetensors weights" in refusal_to_open(folder)
