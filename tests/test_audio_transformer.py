"""The transformer with its audio half equals diffusers' model for every version, and its switches do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from iclora_train.adapters import lora
from iclora_train.adapters.fuse import fuse
from iclora_train.config import ConfigError, Lora
from iclora_train.core.types import AudioTokens, StreamTokens, Tokens
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear
from iclora_train.ltx2.model.transformer import AudioInput, Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks, fused_joint
from iclora_train.ltx2.weights.key_names import MODEL_PREFIX, is_audio
from scripts.synthetic.configs import VERSIONS
from scripts.synthetic.published import TRANSFORMER, renamed
from scripts.synthetic.random_base import RandomBase
from scripts.synthetic_checkpoint import write_checkpoint
from tests.test_transformer import CASES, TEXT, Case, diffusers_model, inputs_of, relative_error

SOUND = 7  # audio tokens
MODULES = ["attn1.to_q", "audio_attn1", "audio_attn2.to_k", "audio_ff", "audio_to_video_attn", "video_to_audio_attn"]


@pytest.fixture(scope="module", params=VERSIONS)
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each version in one official file."""
    return write_checkpoint(tmp_path_factory.mktemp(f"ltx-{request.param}"), request.param)


def sound_of(net: Transformer, sigma: tuple[float, float] = (0.5, 0.8)) -> AudioInput:
    """Sounds of two clips at other noise levels than the video, the last two tokens of the first clip clean."""
    assert net.config.audio is not None
    generator = torch.Generator().manual_seed(3)
    clean = torch.zeros(2, SOUND, dtype=torch.bool)
    clean[0, -2:] = True
    edges = (torch.arange(SOUND + 1) * 0.04 - 0.03).clamp(min=0)
    tokens = AudioTokens(
        latent=torch.randn(2, SOUND, net.config.audio.in_channels, generator=generator),
        sigma=torch.tensor([[sigma[0], 0.0], [sigma[1], 0.0]]),
        level=clean.long(),
        position=torch.stack([edges[:-1], edges[1:]], dim=-1).expand(2, 1, -1, -1),
        group=torch.zeros(SOUND, dtype=torch.long),
        loss_mask=~clean,
    )
    return AudioInput(tokens, torch.randn(2, TEXT, net.config.audio_text_width, generator=generator))


@contextmanager
def gates_of_ltx_core(model: LTX2VideoTransformer3DModel, tokens: Tokens, sound: AudioTokens) -> Iterator[None]:
    """Give diffusers' gates of the attention between the streams the noise level of the other stream's target.

    So does ltx-core. diffusers gives them the token's own level.
    """
    handles = []
    for name, sigma in (("av_cross_attn_video_a2v_gate", sound.sigma), ("av_cross_attn_audio_v2a_gate", tokens.sigma)):

        def replaced(module: torch.nn.Module, args: tuple[Tensor], kwargs: object, s: Tensor = sigma) -> object:
            return (s[:, 0] * 1000,), kwargs

        handles.append(getattr(model, name).register_forward_pre_hook(replaced, with_kwargs=True))
    yield
    for handle in handles:
        handle.remove()


def diffusers_velocities(
    model: LTX2VideoTransformer3DModel, tokens: Tokens, text: Tensor, audio: AudioInput, stg: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """diffusers' velocities of both streams at the positions of the tokens."""
    sound = audio.tokens
    video, heard = model(
        hidden_states=tokens.latent,
        audio_hidden_states=sound.latent,
        encoder_hidden_states=text,
        audio_encoder_hidden_states=audio.text,
        timestep=tokens.sigma.gather(1, tokens.level) * 1000,
        audio_timestep=sound.sigma.gather(1, sound.level) * 1000,
        sigma=tokens.sigma[:, 0] * 1000,
        audio_sigma=sound.sigma[:, 0] * 1000,
        video_coords=tokens.position,
        audio_coords=sound.position,
        video_keyframes_mask=tokens.keyframe[..., None].float(),
        isolate_modalities=audio.isolated,
        spatio_temporal_guidance_blocks=stg,
        use_cross_timestep=audio.cross_level == "comfyui",
        return_dict=False,
    )
    return video, heard


def published(
    model: LTX2VideoTransformer3DModel, tokens: Tokens, text: Tensor, audio: AudioInput, stg: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """diffusers' velocities of both streams with the gates of ltx-core."""
    with gates_of_ltx_core(model, tokens, audio.tokens):
        return diffusers_velocities(model, tokens, text, audio, stg)


def assert_equal(velocities: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for velocity, published_velocity in zip(velocities, expected, strict=True):
        assert velocity.shape == published_velocity.shape
        assert relative_error(velocity, published_velocity) < 1e-5
        assert torch.allclose(velocity, published_velocity, atol=1e-5 * float(published_velocity.abs().max()))


def difference(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """The relative difference of the video and of the audio velocity."""
    return relative_error(one[0], other[0]), relative_error(one[1], other[1])


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_both_streams_equal_the_published_model(official: Path, case: Case) -> None:
    net, reference = BaseModel.open(str(official)).transformer(audio=True), diffusers_model(official)
    (tokens, text), audio = inputs_of(case, net), sound_of(net)
    velocities = net(tokens, text, audio=audio)
    assert_equal(velocities, published(reference, tokens, text, audio))
    isolated = net(tokens, text, audio=replace(audio, isolated=True))
    assert_equal(isolated, published(reference, tokens, text, replace(audio, isolated=True)))
    assert min(difference(isolated, velocities)) > 1e-2


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_both_streams_equal_the_published_model_as_its_pipelines_call_it(official: Path, case: Case) -> None:
    net, reference = BaseModel.open(str(official)).transformer(audio=True), diffusers_model(official)
    (tokens, text), audio = inputs_of(case, net), replace(sound_of(net), cross_level="comfyui")
    velocities = net(tokens, text, audio=audio)
    assert_equal(velocities, diffusers_velocities(reference, tokens, text, audio))
    assert min(difference(velocities, net(tokens, text, audio=replace(audio, cross_level="ltx")))) > 1e-3
    with pytest.raises(ValueError, match="cross_level='own' is not one of ltx, comfyui"):
        replace(audio, cross_level="own")


@torch.no_grad()
def test_without_clean_tokens_and_at_one_noise_level_the_published_gates_are_the_same(official: Path) -> None:
    net, reference = BaseModel.open(str(official)).transformer(audio=True), diffusers_model(official)
    (tokens, text), audio = inputs_of(Case(), net), sound_of(net)
    velocities = net(tokens, text, audio=audio)
    assert min(difference(velocities, diffusers_velocities(reference, tokens, text, audio))) > 1e-3
    level = torch.full((2, 2), 0.6)
    tokens, audio = replace(tokens, sigma=level), replace(audio, tokens=replace(audio.tokens, sigma=level))
    for cross_level in ("ltx", "comfyui"):
        audio = replace(audio, cross_level=cross_level)
        assert_equal(net(tokens, text, audio=audio), diffusers_velocities(reference, tokens, text, audio))


@torch.no_grad()
def test_without_audio_the_transformer_is_the_video_stream(official: Path) -> None:
    base = BaseModel.open(str(official))
    alone, both = base.transformer(), base.transformer(audio=True)
    tokens, text = inputs_of(Case(), alone)
    assert torch.equal(both(tokens, text), alone(tokens, text))
    audio = sound_of(both)
    compile_blocks(both, backend="eager")
    assert torch.equal(both(tokens, text), alone(tokens, text))
    names = {name for name, _ in both.named_parameters()} - {name for name, _ in alone.named_parameters()}
    assert names
    assert all(map(is_audio, names))
    with pytest.raises(AssertionError, match="without its audio half"):
        alone(tokens, text, audio=audio)


def eager_and_compiled(official: Path, backend: str) -> tuple[Transformer, Transformer]:
    """A transformer with an adapter on both streams, eager and compiled."""
    base = BaseModel.open(str(official))
    eager, compiled = (with_adapter(base.transformer(audio=True)).eval() for _ in range(2))
    compile_blocks(compiled, backend=backend)
    return eager, compiled


@torch.no_grad()
@pytest.mark.parametrize("weighted", [False, True], ids=["no attention weights", "attention weights"])
def test_fused_blocks_of_both_streams_equal_plain_blocks_bit_for_bit(official: Path, weighted: bool) -> None:
    eager, compiled = eager_and_compiled(official, "eager")
    (tokens, text), audio = inputs_of(Case(), eager), sound_of(eager)
    if weighted:
        tokens = replace(tokens, weight=torch.where(tokens.group > 0, 0.5, 1.0).expand(2, -1))
    for isolated in (False, True):
        for perturbed in ((), (1,)):  # with (1,), spatio-temporal guidance of both streams in block 1
            sound = replace(audio, isolated=isolated, perturbed=perturbed)
            expected = eager(tokens, text, perturbed=perturbed, audio=sound)
            velocities = compiled(tokens, text, perturbed=perturbed, audio=sound)
            assert all(torch.equal(a, b) for a, b in zip(velocities, expected, strict=True))


@torch.no_grad()
def test_all_blocks_of_both_streams_share_one_compilation(official: Path) -> None:
    """A guidance switch is one more."""
    torch._dynamo.reset()
    _, net = eager_and_compiled(official, "eager")
    counter = CompileCounter()
    runner_of(net).compiled_joint = torch.compile(fused_joint, dynamic=False, backend=counter)
    (tokens, text), audio = inputs_of(Case(), net), sound_of(net)
    for sound, count in ((audio, 1), (audio, 1), (replace(audio, isolated=True), 2)):
        net(tokens, text, audio=sound)
        assert counter.frame_count == count


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_of_both_streams_equal_eager_blocks(official: Path) -> None:
    eager, compiled = eager_and_compiled(official, "inductor")
    (tokens, text), audio = inputs_of(Case(), eager), sound_of(eager)
    assert_equal(compiled(tokens, text, audio=audio), eager(tokens, text, audio=audio))


def moved(tokens: StreamTokens, device: str) -> StreamTokens:
    """The tokens with all their tensors on a device."""
    tensors = {f.name: getattr(tokens, f.name) for f in fields(tokens) if isinstance(getattr(tokens, f.name), Tensor)}
    return replace(tokens, **{name: tensor.to(device) for name, tensor in tensors.items()})


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@torch.no_grad()
def test_compiled_blocks_of_both_streams_on_a_gpu(fp8: bool) -> None:
    """Two blocks of full width, which the kernels of the video stream need."""
    base, device = RandomBase("2.3"), "cuda"
    base.config["transformer"]["num_layers"] = 2
    eager, compiled = (base.transformer(torch.bfloat16, device, fp8, audio=True) for _ in range(2))
    compile_blocks(compiled)
    (tokens, text), audio = inputs_of(Case(), eager), sound_of(eager)
    tokens, text = moved(tokens, device), text.to(device)
    audio = replace(audio, tokens=moved(audio.tokens, device), text=audio.text.to(device))
    assert max(difference(compiled(tokens, text, audio=audio), eager(tokens, text, audio=audio))) < 3e-2


@torch.no_grad()
def test_self_attention_of_each_stream_is_switched_off_in_the_named_blocks(official: Path) -> None:
    base = BaseModel.open(str(official))
    net, reference = base.transformer(audio=True), diffusers_model(official)
    (tokens, text), audio = inputs_of(Case(), net), sound_of(net)
    if base.version != "2.0":  # diffusers has no STG for 2.0
        both = net(tokens, text, perturbed=(1,), audio=replace(audio, perturbed=(1,)))
        assert_equal(both, published(reference, tokens, text, audio, stg=[1]))
    isolated = replace(audio, isolated=True)  # so that neither stream sees the other
    plain = net(tokens, text, audio=isolated)
    video_only = net(tokens, text, perturbed=(0,), audio=isolated)
    audio_only = net(tokens, text, audio=replace(isolated, perturbed=(0,)))
    assert difference(video_only, plain)[0] > 1e-2
    assert torch.equal(video_only[1], plain[1])
    assert difference(audio_only, plain)[1] > 1e-2
    assert torch.equal(audio_only[0], plain[0])


@torch.no_grad()
def test_the_first_outputs_of_each_stream_can_be_asked_for(official: Path) -> None:
    net = BaseModel.open(str(official)).transformer(audio=True)
    (tokens, text), audio = inputs_of(Case(), net), sound_of(net)
    video, heard = net(tokens, text, audio=audio)
    first, first_heard = net(tokens, text, num_outputs=32, audio=replace(audio, num_outputs=3))
    assert torch.allclose(first, video[:, :32], atol=1e-6)
    assert torch.allclose(first_heard, heard[:, :3], atol=1e-6)


@torch.no_grad()
def test_attention_weights_act_on_self_attention_alone(official: Path) -> None:
    """A reference of weight 0 still takes part in the attention between the streams, as in ltx-core."""
    net = BaseModel.open(str(official)).transformer(audio=True)
    (tokens, text), audio = inputs_of(Case(), net), sound_of(net)
    weighted = replace(tokens, weight=torch.where(tokens.group > 0, 0.0, 1.0).expand(2, -1))
    other = replace(weighted, latent=torch.where((tokens.group > 0)[:, None], -tokens.latent, tokens.latent))
    velocities, changed = net(weighted, text, audio=audio), net(other, text, audio=audio)
    assert relative_error(changed[1], velocities[1]) > 1e-3
    isolated = replace(audio, isolated=True)
    alone, alone_changed = net(weighted, text, audio=isolated), net(other, text, audio=isolated)
    assert torch.equal(alone[1], alone_changed[1])
    assert torch.allclose(alone[0][:, :32], alone_changed[0][:, :32], atol=1e-6)


@torch.no_grad()
def test_a_diffusers_folder_and_fp8_weights_give_both_streams(official: Path, tmp_path: Path) -> None:
    base = BaseModel.open(str(official))
    write_checkpoint(tmp_path / "folder", base.version, "diffusers")
    net, folder = base.transformer(audio=True), BaseModel.open(str(tmp_path / "folder")).transformer(audio=True)
    assert folder.config == net.config
    (tokens, text), audio = inputs_of(CASES[1], net), sound_of(net)
    exact = net(tokens, text, audio=audio)
    for velocity, expected in zip(folder(tokens, text, audio=audio), exact, strict=True):
        assert torch.equal(velocity, expected)
    file = write_checkpoint(tmp_path / "fp8", base.version, fp8=True)
    dequantized = BaseModel.open(str(file)).transformer(audio=True)
    velocities = dequantized(tokens, text, audio=audio)
    assert_equal(velocities, published(diffusers_model(file), tokens, text, audio))
    in_fp8 = BaseModel.open(str(file)).transformer(audio=True, fp8=True)
    kinds = {name.split(".", 2)[2] for name, layer in in_fp8.named_modules() if isinstance(layer, Fp8Linear)}
    assert kinds >= {"audio_attn1.to_q", "audio_ff.net.2", "audio_to_video_attn.to_v", "video_to_audio_attn.to_out.0"}
    assert max(difference(in_fp8(tokens, text, audio=audio), velocities)) < 1e-5
    assert 1e-4 < max(difference(velocities, exact)) < 0.1


def test_a_checkpoint_without_the_audio_half_is_named(official: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nano holds the video stream alone.*give an official file"):
        BaseModel.open("nano").transformer(audio=True)
    weights = load_file(official)
    with safe_open(official, framework="pt") as opened:
        metadata = opened.metadata()
    video = {k: t for k, t in weights.items() if not is_audio(k.removeprefix(MODEL_PREFIX))}
    save_file(video, tmp_path / "video.safetensors", metadata)
    base = BaseModel.open(str(tmp_path / "video.safetensors"))
    assert (base.has_audio_half, BaseModel.open(str(official)).has_audio_half) == (False, True)
    base.transformer()
    with pytest.raises(ConfigError, match=r"video\.safetensors holds the video stream alone"):
        base.transformer(audio=True)
    incomplete = {k: t for k, t in weights.items() if "video_to_audio_attn.to_k" not in k}
    save_file(incomplete, tmp_path / "incomplete.safetensors", metadata)
    with pytest.raises(ConfigError, match=r"4 keys: missing transformer_blocks.0.video_to_audio_attn.to_k"):
        BaseModel.open(str(tmp_path / "incomplete.safetensors")).transformer(audio=True)


def with_adapter(net: Transformer) -> Transformer:
    """The transformer with an adapter in both streams and in the attention between them, B not zero."""
    lora.attach(net, Lora(rank=2, targets=MODULES))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in net.named_parameters():
        if ".lora_B" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


@torch.no_grad()
def test_an_adapter_of_both_streams_equals_the_published_model_with_it(official: Path, tmp_path: Path) -> None:
    base, reference = BaseModel.open(str(official)), diffusers_model(official)
    net = with_adapter(base.transformer(audio=True))
    adapter = lora.Adapter(lora.adapter_weights(net), {"reference_downscale_factor": "1"})
    lora.save(tmp_path / "a.safetensors", adapter)
    adapter = lora.read(tmp_path / "a.safetensors")
    (tokens, text), audio = inputs_of(Case(), net), sound_of(net)
    reference.load_lora_adapter(LTX2Pipeline.lora_state_dict(str(tmp_path / "a.safetensors")), prefix="transformer")
    reference.fuse_lora()
    expected = published(reference, tokens, text, audio)
    loaded, fused = base.transformer(audio=True), base.transformer(audio=True)
    assert min(difference(fused(tokens, text, audio=audio), expected)) > 1e-2
    assert (lora.load_adapter(loaded, adapter), fuse(fused, [(adapter, 1.0)])) == (0, 0)
    assert_equal(loaded(tokens, text, audio=audio), expected)
    assert_equal(fused(tokens, text, audio=audio), expected)
    video_only = base.transformer()
    assert lora.load_adapter(video_only, adapter) == len(adapter.audio) == len(adapter.weights) - 2


def loss_of(video: Tensor, heard: Tensor) -> Tensor:
    return video.square().mean() + 2 * heard.square().mean()


@pytest.mark.parametrize("saving", ["all", "checkpointing", "compiled"])
def test_gradients_equal_those_of_the_published_model(official: Path, saving: str) -> None:
    """The gradient of a weight W = W0 + B A is G; that of B is G A^T and that of A is B^T G."""
    reference = diffusers_model(official)
    net = with_adapter(BaseModel.open(str(official)).transformer(audio=True)).train()
    runner_of(net).activation_checkpointing = saving == "checkpointing"
    if saving == "compiled":
        compile_blocks(net, 0.5, backend="eager")
    (tokens, text), audio = inputs_of(Case(), net), sound_of(net)
    loss_of(*net(tokens, text, audio=audio)).backward()
    factors = {name: tuple(f.weight for f in (layer.lora_A["default"], layer.lora_B["default"]))
               for name, layer in lora.layers(net)}  # fmt: skip
    weights = {name: reference.get_submodule(renamed(name, TRANSFORMER)).weight for name in factors}
    for name, weight in weights.items():
        weight.data += (factors[name][1] @ factors[name][0]).detach()
    loss_of(*published(reference, tokens, text, audio)).backward()
    for name, (a, b) in factors.items():
        gradient = weights[name].grad
        assert gradient is not None
        assert a.grad is not None
        assert b.grad is not None
        assert relative_error(b.grad, gradient @ a.detach().T) < 1e-5, name
        assert relative_error(a.grad, b.detach().T @ gradient) < 1e-5, name


def test_offloaded_weights_give_the_same_velocities_and_gradients(official: Path) -> None:
    results = []
    for count in (0, 2):
        net = with_adapter(BaseModel.open(str(official)).transformer(audio=True, weight_offload=count)).train()
        (tokens, text), audio = inputs_of(Case(), net), sound_of(net)
        velocities = net(tokens, text, audio=audio)
        parameters = [p for p in net.parameters() if p.requires_grad]
        results.append([*velocities, *torch.autograd.grad(loss_of(*velocities), parameters)])
        if count:
            offloaded = runner_of(net).weight_offload.weights[1]
            assert len(offloaded) == 2 * 4 * 6 // 2 + 2 * 2 + (6 if net.config.apply_gated_attention else 0)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
