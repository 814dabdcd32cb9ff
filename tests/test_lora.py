"""LoRA in the model: attach, export, load, fuse; an adapter that does not fit is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline
from safetensors import safe_open
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.adapters.fuse import fuse
from iclora_train.config import ConfigError, Lora
from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.reference import append_reference, target_tokens
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from tests.tiny import CHANNELS, TEXT, TRANSFORMER, WIDTH

METADATA = {"reference_downscale_factor": "1", "base_model_family": "tiny", "base_model_version": "2.3"}
PREFIX = "diffusion_model.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def transformer() -> Transformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Transformer(TransformerConfig.from_metadata(TRANSFORMER)).requires_grad_(False)


def attach_trained(transformer: nn.Module, settings: Lora) -> list[nn.Parameter]:
    """Attach an adapter and set B to random values, as after training."""
    parameters = lora.attach(transformer, settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return parameters


def tokens_and_text() -> tuple[Tokens, Tensor]:
    generator = torch.Generator().manual_seed(2)
    noisy, reference = torch.randn(2, 1, CHANNELS, 2, 2, 3, generator=generator).unbind(0)
    tokens = target_tokens(noisy, torch.tensor([0.6]), Geometry(CHANNELS, 8, 4), 25.0)
    return append_reference(tokens, reference), torch.randn(1, TEXT["tokens"], WIDTH, generator=generator)


def test_a_new_adapter_changes_no_output_and_only_its_weights_are_trained(transformer: Transformer) -> None:
    inputs = tokens_and_text()
    before = transformer(*inputs)
    parameters = lora.attach(transformer, Lora(rank=4))
    assert torch.equal(transformer(*inputs), before)
    assert {id(p) for p in transformer.parameters() if p.requires_grad} == {id(p) for p in parameters}
    names = [name for name, _ in lora.layers(transformer)]
    assert len(names) == 2 * 10  # blocks x targets
    assert names[0] == "transformer_blocks.0.attn1.to_q"


def test_attach_is_seeded_and_keeps_the_global_random_state(transformer: Transformer) -> None:
    state = torch.get_rng_state()
    first = [p.clone() for p in lora.attach(transformer, Lora(rank=4), generator_seed=3)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    other = Transformer(TransformerConfig.from_metadata(TRANSFORMER))
    for a, b in zip(first, lora.attach(other, Lora(rank=4), generator_seed=3), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_a_saved_adapter_gives_the_same_model(transformer: Transformer, tmp_path: Path, alpha: float | None) -> None:
    inputs = tokens_and_text()
    base = transformer(*inputs)
    attach_trained(transformer, Lora(rank=4, alpha=alpha))
    expected = transformer(*inputs)
    with lora.adapter_off(transformer):
        assert torch.equal(transformer(*inputs), base)
    assert torch.equal(transformer(*inputs), expected)
    path = tmp_path / "a.safetensors"
    lora.save(path, lora.Adapter(lora.adapter_weights(transformer), METADATA))
    torch.manual_seed(0)
    reloaded = Transformer(TransformerConfig.from_metadata(TRANSFORMER))
    lora.load_adapter(reloaded, lora.read(path))
    assert torch.allclose(reloaded(*inputs), expected, atol=1e-5)
    assert not torch.allclose(expected, base, atol=1e-3)


def test_the_file_has_the_documented_format(transformer: Transformer, tmp_path: Path) -> None:
    attach_trained(transformer, Lora(rank=4, alpha=8))
    linear = transformer.get_submodule("transformer_blocks.1.ff.net.2")
    path = tmp_path / "a.safetensors"
    lora.save(path, lora.Adapter(lora.adapter_weights(transformer), METADATA), torch.bfloat16)
    with safe_open(path, framework="pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
        a, b = (file.get_tensor(f"diffusion_model.transformer_blocks.1.ff.net.2.lora_{side}.weight") for side in "AB")
    assert metadata == {"format": "pt", **METADATA}
    assert len(keys) == 2 * 20
    assert all(key.startswith("diffusion_model.transformer_blocks.") for key in keys)
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
    assert not any(".default" in key or "alpha" in key for key in keys)
    assert (a.dtype, a.shape, b.shape) == (torch.bfloat16, (4, 4 * WIDTH), (WIDTH, 4))
    delta = linear.get_delta_weight("default").detach()  # type: ignore[operator]
    assert torch.allclose(b.float() @ a.float(), delta, atol=0.03 * float(delta.abs().max()))


def test_saving_twice_gives_the_same_bytes(transformer: Transformer, tmp_path: Path) -> None:
    attach_trained(transformer, Lora(rank=2))
    adapter = lora.Adapter(lora.adapter_weights(transformer), {**METADATA, **{f"key{i}": str(i) for i in range(20)}})
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path in files:
        lora.save(path, adapter)
    assert len({path.read_bytes() for path in files}) == 1


def test_diffusers_reads_the_file(transformer: Transformer, tmp_path: Path) -> None:
    attach_trained(transformer, Lora(rank=4, alpha=8))
    weights = lora.adapter_weights(transformer)
    lora.save(tmp_path / "a.safetensors", lora.Adapter(weights, METADATA))
    state, metadata = LTX2Pipeline.lora_state_dict(str(tmp_path / "a.safetensors"), return_lora_metadata=True)
    assert metadata is None  # alpha is in the weights, so diffusers must not scale them
    assert len(state) == 2 * len(weights)
    for name, (a, b) in weights.items():
        assert torch.equal(state[f"transformer.{name}.lora_A.weight"], a)
        assert torch.equal(state[f"transformer.{name}.lora_B.weight"], b)


def adapter_of(shapes: dict[str, tuple[int, int]], rank: int, seed: int, **metadata: str) -> lora.Adapter:
    """A random adapter for linears (module -> (out, in))."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return 0.2 * torch.randn(size, generator=generator)

    weights = {name: (random(rank, width), random(out, rank)) for name, (out, width) in shapes.items()}
    return lora.Adapter(weights, {**METADATA, **metadata})


QUERIES = {f"transformer_blocks.{i}.attn1.to_q": (WIDTH, WIDTH) for i in range(2)}
WIDE = {"transformer_blocks.0.ff.net.0.proj": (4 * WIDTH, WIDTH), "transformer_blocks.0.attn1.to_q": (WIDTH, WIDTH)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"transformer_blocks.0.attn1.to_q": (WIDTH, 7)}, "fits a linear 7 -> 48, the base has 48 -> 48"),
        ({"transformer_blocks.2.attn1.to_q": (WIDTH, WIDTH)}, "which the base does not have (it has 2 blocks)"),
        ({"other": (WIDTH, WIDTH)}, "weights for other, which the base does not have"),
        ({"transformer_blocks.0.audio_attn1.to_q": (WIDTH, WIDTH)}, "changes only the audio stream"),
    ],
)
def test_an_adapter_that_does_not_fit_the_base_is_refused(
    transformer: Transformer, shapes: dict[str, tuple[int, int]], message: str
) -> None:
    adapter = adapter_of(shapes, 2, 0)
    before = [p.clone() for p in transformer.parameters()]
    for apply in (lambda: lora.load_adapter(transformer, adapter), lambda: fuse(transformer, [(adapter, 1.0)])):
        with pytest.raises(ConfigError) as caught:
            apply()
        assert message in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, transformer.parameters(), strict=True))


def test_several_adapters_run_at_their_strengths(transformer: Transformer) -> None:
    """Layers and fused fp32 weights both add the sum of strength * B A."""
    first, second = adapter_of(QUERIES, 3, 1), adapter_of(WIDE, 2, 2)
    fused = copy.deepcopy(transformer)
    assert lora.load_adapter(transformer, [(first, 0.5), (second, -2.0)]) == 0
    assert fuse(fused, [(first, 0.5), (second, -2.0)]) == 0
    inputs = tokens_and_text()
    assert torch.allclose(transformer(*inputs), fused(*inputs), atol=1e-5)
    with lora.adapter_off(transformer):
        base = transformer(*inputs)
    assert not torch.allclose(base, fused(*inputs), atol=1e-3)
    name = "transformer_blocks.0.attn1.to_q"
    delta = fused.get_submodule(name).weight - transformer.get_submodule(name).base_layer.weight  # type: ignore[union-attr, operator]
    (a, b), (c, d) = first.weights[name], second.weights[name]
    assert torch.allclose(delta, 0.5 * b @ a - 2.0 * d @ c, atol=1e-6)


def test_fusing_rounds_once(transformer: Transformer) -> None:
    """A fused bf16 weight is the rounded sum of the fp32 terms, even if rounding would remove each single term."""
    name = "transformer_blocks.0.attn1.to_q"
    linear = transformer.bfloat16().get_submodule(name)
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.fill_(1.0)
    tiny = lora.Adapter({name: (torch.full((1, WIDTH), 1e-3), torch.ones(WIDTH, 1))}, METADATA)
    fuse(transformer, [(tiny, 1.0)] * 8)
    assert torch.equal(linear.weight, torch.full((WIDTH, WIDTH), 1.008).bfloat16())
    assert not torch.equal(linear.weight, torch.ones(WIDTH, WIDTH).bfloat16())


def test_audio_modules_are_ignored_and_counted(transformer: Transformer) -> None:
    audio = {
        "transformer_blocks.0.audio_attn1.to_q": (20, 20),
        "transformer_blocks.1.audio_to_video_attn.to_k": (20, 48),
    }
    audio_video, video = adapter_of({**QUERIES, **audio}, 2, 3), adapter_of(QUERIES, 2, 3)
    fused = copy.deepcopy(transformer)
    assert fuse(fused, [(audio_video, 1.0)]) == 2
    assert lora.load_adapter(transformer, audio_video) == 2
    assert [name for name, _ in lora.layers(transformer)] == list(QUERIES)
    assert audio_video.weights.keys() - audio_video.video.keys() == set(audio)
    assert audio_video.video.keys() == video.weights.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Lora(rank=49), "model.lora.rank=49 is above 48"),
        (Lora(targets=["attn1.to_x"]), "no linear 'attn1.to_x' in the base; it has attn1.to_gate_logits, attn1.to_k"),
    ],
)
def test_settings_that_the_base_does_not_fit_are_refused(
    transformer: Transformer, settings: Lora, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        lora.attach(transformer, settings)
    assert message in str(caught.value)


def test_rank_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.rank=0 must be at least 1"):
        Lora(rank=0)
