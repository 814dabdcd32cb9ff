"""Text encoders: features equal diffusers' pipeline; wrong encoders and files are refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.ltx2.text.connectors import Connectors
from iclora_train.ltx2.text.gemma import GemmaTextEncoder, text_fingerprint
from scripts.synthetic.gemma import INPUTS, LAYERS, WIDTH, pack_tiny_gemma, write_gemma, write_tiny_tokenizer

KIND = {"2.0": "gemma3", "2.3": "gemma3", "2.5": "gemma4_unified"}
CAPTIONS = ["the cat \u00e9 sits on the mat", "", "  a dog  "]
SHARED = {"connector_num_layers": 2, "connector_positional_embedding_max_pos": [4096]}
OFFICIAL: dict[str, dict[str, Any]] = {  # the section `transformer` of the checkpoint's config
    "2.0": SHARED
    | {
        "rope_type": "split",
        "frequencies_precision": "float64",
        "connector_num_attention_heads": 2,
        "connector_attention_head_dim": WIDTH // 2,
    },
    "2.3": SHARED
    | {
        "rope_type": "split",
        "frequencies_precision": "float64",
        "connector_num_attention_heads": 4,
        "connector_attention_head_dim": 8,
        "audio_connector_num_attention_heads": 4,
        "audio_connector_attention_head_dim": 6,
        "connector_apply_gated_attention": True,
        "caption_proj_before_connector": True,
        "caption_projection_first_linear": False,
    },
}
OFFICIAL["2.5"] = OFFICIAL["2.3"]
AUDIO_WIDTHS = {"2.0": WIDTH // 2, "2.3": 6, "2.5": 6}  # of a head
SIZES = {"2.0": (2, WIDTH // 2), "2.3": (4, 8), "2.5": (4, 8)}
RENAMED = (
    ("video_connector", "video_embeddings_connector"),
    ("audio_connector", "audio_embeddings_connector"),
    ("transformer_blocks", "transformer_1d_blocks"),
    ("norm_q", "q_norm"),
    ("norm_k", "k_norm"),
    ("text_proj_in", "text_embedding_projection.aggregate_embed"),
    ("video_text_proj_in", "text_embedding_projection.video_aggregate_embed"),
    ("audio_text_proj_in", "text_embedding_projection.audio_aggregate_embed"),
)


def diffusers_connectors(version: str) -> Any:
    """diffusers' connectors, video and audio, with random weights."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors  # noqa: PLC0415 (slow)

    heads, width = SIZES[version]
    sizes = {"caption_channels": WIDTH, "text_proj_in_factor": LAYERS + 1, "rope_type": "split"}
    for side, head_width in (("video", width), ("audio", AUDIO_WIDTHS[version])):
        sizes |= {f"{side}_connector_num_attention_heads": heads, f"{side}_connector_attention_head_dim": head_width}
        sizes |= {f"{side}_gated_attn": version != "2.0", f"{side}_hidden_dim": heads * head_width}
    since_2_3 = {"per_modality_projections": True, "proj_bias": True} if version != "2.0" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LTX2TextConnectors(**sizes, **since_2_3).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def official_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' weights under the names of the official files."""
    table = dict(RENAMED)
    return {".".join(table.get(part, part) for part in key.split(".")): tensor for key, tensor in state.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny Gemma 3 and a tiny Gemma 4."""
    root = tmp_path_factory.mktemp("gemma")
    return {kind: write_gemma(root / kind, kind) for kind in ("gemma3", "gemma4_unified")}


def connectors(version: str, **side: Any) -> Connectors:
    return Connectors.from_official(
        {"transformer": OFFICIAL[version]}, official_keys(diffusers_connectors(version).state_dict()), **side
    )


def open_encoder(folder: Path, version: str) -> GemmaTextEncoder:
    return GemmaTextEncoder.open(folder, version, connectors(version), torch.float32)


def published_features(folder: Path, version: str, captions: list[str]) -> Tensor:
    """Video features of diffusers' pipeline."""
    return published_sides(folder, version, captions)[0]


@torch.no_grad()
def published_sides(folder: Path, version: str, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Video and audio features of diffusers' pipeline: its tokenizer, text encoder, prompt code and connectors."""
    from diffusers import LTX2Pipeline  # noqa: PLC0415 (slow)
    from transformers import AutoModelForImageTextToText, AutoTokenizer  # noqa: PLC0415 (slow)

    parts = dict.fromkeys(("scheduler", "vae", "audio_vae", "transformer", "vocoder"))
    encoder = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipeline = LTX2Pipeline(
        text_encoder=encoder, tokenizer=tokenizer, connectors=diffusers_connectors(version), **parts
    )
    states, mask, *_ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, device="cpu")
    video, audio, still_masked = pipeline.connectors(states, mask, padding_side=tokenizer.padding_side)
    assert bool(still_masked.all()), "a mask must be stored with the features"
    return video, audio


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_features_equal_the_published_pipeline(version: str, folders: dict[str, Path]) -> None:
    folder = folders[KIND[version]]
    features = open_encoder(folder, version).encode(CAPTIONS)
    expected = published_features(folder, version, CAPTIONS)
    assert features.shape == (3, 1024, SIZES[version][0] * SIZES[version][1])
    assert features.dtype == torch.float32
    assert float((features - expected).abs().max()) < 1e-5
    model = diffusers_connectors(version)
    from_diffusers = Connectors.from_diffusers(dict(model.config), model.state_dict())
    assert torch.equal(GemmaTextEncoder.open(folder, version, from_diffusers, torch.float32).encode(CAPTIONS), features)


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_features_of_both_streams_equal_the_published_pipeline(version: str, folders: dict[str, Path]) -> None:
    folder, model = folders[KIND[version]], diffusers_connectors(version)
    expected = published_sides(folder, version, CAPTIONS)
    video = connectors(version)
    of_folder = Connectors.from_diffusers(dict(model.config), model.state_dict())
    pairs = (
        (video, connectors(version, side="audio", beside=video)),
        (of_folder, Connectors.from_diffusers(dict(model.config), model.state_dict(), side="audio", beside=of_folder)),
    )
    for video_side, audio_side in pairs:
        assert (audio_side.projection is video_side.projection) == (version == "2.0")  # 2.0 has one for both
        text = GemmaTextEncoder.open(folder, version, video_side, torch.float32, audio_connectors=audio_side)
        found = text.encode_both(CAPTIONS)
        assert found[1].shape == (3, 1024, SIZES[version][0] * AUDIO_WIDTHS[version])
        for features, published in zip(found, expected, strict=True):
            assert float((features - published).abs().max()) < 1e-5
        assert torch.equal(text.encode(CAPTIONS), found[0])


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_features_do_not_depend_on_the_rest_of_the_batch(version: str, folders: dict[str, Path]) -> None:
    text = open_encoder(folders[KIND[version]], version)
    captions = [*CAPTIONS, "the " * 300, "the end"]  # two batches
    together = text.encode(captions)
    for caption, features in zip(captions, together, strict=True):
        assert torch.allclose(text.encode([caption])[0], features, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert torch.equal(text.encode(["  a dog  "]), text.encode(["a dog"]))


def test_a_long_caption_is_cut_at_1024_tokens_with_a_warning(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    text = open_encoder(folders["gemma3"], "2.3")
    with caplog.at_level(logging.WARNING):
        features = text.encode(["the " * 1023])
    assert not caplog.records  # with <bos> exactly 1024
    with caplog.at_level(logging.WARNING):
        truncated = text.encode(["the " * 1023 + "mat"])
    assert "'the the the" in caplog.text
    assert "has 1028 tokens; only the first 1024 are read" in caplog.text
    assert torch.equal(features, truncated)
    assert torch.allclose(truncated, published_features(folders["gemma3"], "2.3", ["the " * 1023 + "mat"]), atol=1e-5)


def test_bos_is_added_for_gemma_4_whose_tokenizer_omits_it(folders: dict[str, Path], tmp_path: Path) -> None:
    bare = Path(shutil.copytree(folders["gemma4_unified"], tmp_path / "bare"))
    write_tiny_tokenizer(bare, bos=False)
    with_bos, without_bos = (
        open_encoder(folder, "2.5").encode(CAPTIONS) for folder in (folders["gemma4_unified"], bare)
    )
    assert torch.equal(with_bos, without_bos)


def test_the_packed_file_of_ltx_2_5_gives_the_features_of_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    state = official_keys(diffusers_connectors("2.5").state_dict())
    projection = {key: state.pop(key) for key in list(state) if key.startswith("text_embedding_projection.")}
    with pytest.raises(
        ConfigError, match=r"lack text_embedding_projection.video_aggregate_embed.weight.*model.text_enc"
    ):
        Connectors.from_official({"transformer": OFFICIAL["2.5"]}, state)
    file = pack_tiny_gemma(folders["gemma4_unified"], tmp_path / "gemma4.safetensors", projection)
    packed = {key: tensor for key, tensor in load_file(file).items() if key in projection}
    connectors_of_both = Connectors.from_official({"transformer": OFFICIAL["2.5"]}, state | packed)
    features = GemmaTextEncoder.open(file, "2.5", connectors_of_both, torch.float32).encode(CAPTIONS)
    assert torch.equal(features, open_encoder(folders["gemma4_unified"], "2.5").encode(CAPTIONS))


def test_a_diffusers_folder_and_other_key_prefixes_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    inner = Path(shutil.copytree(folders["gemma3"], tmp_path / "text_encoder"))
    (tmp_path / "tokenizer").mkdir()
    shutil.move(inner / "tokenizer.json", tmp_path / "tokenizer")
    state = load_file(inner / "model.safetensors")
    (inner / "model.safetensors").unlink()
    state = {key.replace("language_model.model.", "model.language_model."): value for key, value in state.items()}
    half = len(state) // 2  # as shards
    for i, keys in enumerate((list(state)[:half], list(state)[half:])):
        save_file({key: state[key] for key in keys}, inner / f"model-{i}.safetensors")
    expected = open_encoder(folders["gemma3"], "2.0").encode(CAPTIONS)
    for path in (tmp_path, inner):
        assert torch.equal(open_encoder(path, "2.0").encode(CAPTIONS), expected)


def test_only_the_language_model_is_loaded_in_the_requested_dtype(folders: dict[str, Path]) -> None:
    text = GemmaTextEncoder.open(folders["gemma3"], "2.3", connectors("2.3"))
    assert {p.dtype for p in text.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in text.parameters())
    assert not any(word in name for name, _ in text.named_parameters() for word in ("vision", "audio", "lm_head"))
    exact = open_encoder(folders["gemma3"], "2.3").encode(CAPTIONS)
    assert float((text.encode(CAPTIONS) - exact).norm() / exact.norm()) < 0.1


def test_the_fingerprint_depends_on_the_content(folders: dict[str, Path], tmp_path: Path) -> None:
    first = text_fingerprint(folders["gemma3"])
    copy = Path(shutil.copytree(folders["gemma3"], tmp_path / "copy"))
    assert text_fingerprint(copy) == first
    write_tiny_tokenizer(copy, bos=False)
    assert text_fingerprint(copy) != first
    assert text_fingerprint(write_gemma(tmp_path / "other", "gemma3", seed=1)) != first


@pytest.mark.parametrize(
    ("kind", "version", "message"),
    [
        ("gemma3", "2.5", "is Gemma 3, but LTX-2.5 needs LTX's Gemma 4 .*set model.text_encoder to gemma4-12b"),
        ("gemma4_unified", "2.3", "is LTX's Gemma 4, but LTX-2.3 needs Gemma 3 .*set model.text_encoder to google/"),
    ],
)
def test_the_encoder_of_another_version_is_refused(
    kind: str, version: str, message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_encoder(folders[kind], version)


def test_a_gemma_4_of_another_tuning_is_refused(tmp_path: Path) -> None:
    folder = write_gemma(tmp_path, "gemma4_unified", gemma_version="ltx-v1")
    GemmaTextEncoder.open(folder, "2.5", connectors("2.5"), torch.float32, gemma_version="ltx-v1")
    with pytest.raises(ConfigError, match="gemma_version='ltx-v1', but the checkpoint was trained with 'ltx-v2'"):
        GemmaTextEncoder.open(folder, "2.5", connectors("2.5"), torch.float32, gemma_version="ltx-v2")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json; give a folder of Gemma.*packed file"),
        ("tokenizer.json", "has no tokenizer: neither .*tokenizer.json nor .* exists; copy"),
        ("model.safetensors", r"has no .safetensors weights .*fetch the safetensors"),
    ],
)
def test_an_incomplete_folder_is_refused(missing: str, message: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["gemma3"], tmp_path / "part"))
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        open_encoder(folder, "2.3")
    with pytest.raises(ConfigError, match="/nowhere does not exist"):
        open_encoder(tmp_path / "nowhere", "2.3")


def test_damaged_and_foreign_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["gemma3"], tmp_path / "bad"))
    file = folder / "model.safetensors"
    state = load_file(file)
    missing = "language_model.model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in state.items() if key != missing}, file)
    with pytest.raises(ConfigError, match=r"does not fit its config \(1 keys: missing layers.1.mlp.up_proj.weight"):
        open_encoder(folder, "2.3")
    save_file(state | {missing: state[missing].to(torch.float8_e4m3fn)}, file)
    with pytest.raises(ConfigError, match=r"up_proj.weight is F8_E4M3; give bf16 weights"):
        open_encoder(folder, "2.3")
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"the config in .*config.json is not JSON"):
        open_encoder(folder, "2.3")
    shutil.copy(folders["gemma3"] / "config.json", folder)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"is truncated.*fetch it again"):
        open_encoder(folder, "2.3")
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ConfigError, match=r"0 tensors are named \*embed_tokens.weight"):
        open_encoder(folder, "2.3")
    with pytest.raises(ConfigError, match=r"is not LTX-2.5's packed text encoder"):
        open_encoder(file, "2.5")


def test_an_encoder_of_another_size_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    state = official_keys(diffusers_connectors("2.3").state_dict())
    key = "text_embedding_projection.video_aggregate_embed.weight"
    wide = Connectors.from_official({"transformer": OFFICIAL["2.3"]}, state | {key: torch.zeros(32, 2 * INPUTS)})
    with pytest.raises(ConfigError, match=f"{INPUTS} numbers per token, but .* takes {2 * INPUTS}"):
        GemmaTextEncoder.open(folders["gemma3"], "2.3", wide)


def test_connectors_that_do_not_fit_their_config_are_refused() -> None:
    state = official_keys(diffusers_connectors("2.3").state_dict())
    config = {"transformer": OFFICIAL["2.3"]}
    missing = "video_embeddings_connector.transformer_1d_blocks.1.attn1.q_norm.weight"
    with pytest.raises(ConfigError, match=rf"1 keys: missing {missing}.*model.connectors"):
        Connectors.from_official(config, {key: value for key, value in state.items() if key != missing})
    with pytest.raises(ConfigError, match=r"unknown video_embeddings_connector.proj_out.weight"):
        Connectors.from_official(config, state | {"video_embeddings_connector.proj_out.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match=rf"{missing} has shape \(5,\) instead of \(32,\)"):
        Connectors.from_official(config, state | {missing: torch.zeros(5)})
    with pytest.raises(ConfigError, match="no section `transformer`"):
        Connectors.from_official({}, state)
    with pytest.raises(ConfigError, match=r"lack video_embeddings_connector.learnable_registers"):
        Connectors.from_official(config, {})
    model = diffusers_connectors("2.3")
    with pytest.raises(ConfigError, match="has no video_connector_num_learnable_registers"):
        Connectors.from_diffusers(json.loads('{"video_connector_num_learnable_registers": null}'), model.state_dict())
