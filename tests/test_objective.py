"""The training loss: the flow loss alone by default, and the locality term where `flow.locality` is set."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import ConfigError, Flow, Lora, Task
from iclora_train.core.types import Geometry, Tokens
from iclora_train.data.batch import Batch
from iclora_train.diffusion.flow_matching import masked_loss
from iclora_train.diffusion.loss import training_losses
from iclora_train.diffusion.random_draws import WHOLE_FRAME, RandomDraws, draw_random, step_generator
from iclora_train.diffusion.training_inputs import build_tokens
from iclora_train.ltx2.model.transformer import Transformer
from tests.test_sample import tiny
from tests.tiny import CHANNELS, WIDTH

GEOMETRY, TASK, LOCAL = Geometry(CHANNELS, spatial=8, temporal=4), Task(), Flow(locality=2.0, locality_p=1.0)
GENERATOR = torch.Generator().manual_seed(0)
TARGET, REFERENCE = torch.randn(2, 3, CHANNELS, 2, 2, 4, generator=GENERATOR)
BATCH = Batch(
    TARGET,
    [REFERENCE],
    text=torch.randn(3, 5, WIDTH, generator=GENERATOR),
    fps=torch.full((3,), 25.0),
    keys=list("abc"),
)
LEFT = torch.tensor([[0.0, 1.0, 0.0, 0.5], WHOLE_FRAME, WHOLE_FRAME])  # the first clip's region is the left half


def draws_with(locality_region: Tensor | None) -> RandomDraws:
    plain = draw_random(TARGET, Flow(), step_generator(0, 0, 0))
    no_first_frame = plain.clean_first_frame & False
    return RandomDraws(plain.sigma, plain.noise, no_first_frame, plain.use_references, locality_region=locality_region)


class CopyingModel:
    """A stand-in for the transformer that copies reference tokens.

    local=True: a target token's velocity is the reference token at its position. local=False: it is the sum over all
    reference tokens. Both multiply the reference tokens by their attention weights.
    """

    def __init__(self, local: bool) -> None:
        self.local, self.gain = local, torch.tensor(1.0, requires_grad=True)
        self.calls: list[tuple[Tensor, bool]] = []  # attention weights of the reference tokens, gradient enabled

    def __call__(self, tokens: Tokens, text: Tensor, num_outputs: int) -> Tensor:
        weight = torch.ones(tokens.latent.shape[:2]) if tokens.weight is None else tokens.weight
        self.calls.append((weight[:, num_outputs:], torch.is_grad_enabled()))
        reference = tokens.latent[:, num_outputs:] * weight[:, num_outputs:, None]
        return self.gain * (reference if self.local else reference.sum(1, keepdim=True).expand(-1, num_outputs, -1))


@pytest.fixture(scope="module")
def net() -> Transformer:
    return tiny()


def test_without_locality_the_loss_is_the_flow_loss_of_one_forward_pass() -> None:
    draws, model = draw_random(TARGET, Flow(), step_generator(0, 0, 0)), CopyingModel(local=False)
    losses = training_losses(model, BATCH, draws, TASK, GEOMETRY)  # type: ignore[arg-type]
    tokens, target = build_tokens(BATCH, draws, TASK, GEOMETRY)
    count = target.shape[1]
    assert len(model.calls) == 1
    assert losses.locality is None
    assert torch.equal(losses.flow, masked_loss(model(tokens, BATCH.text, count), target, tokens.loss_mask[:, :count]))
    assert torch.equal(losses.total(Flow()), losses.flow.mean())


def test_the_locality_pass_masks_references_outside_the_region_and_has_no_gradient() -> None:
    model = CopyingModel(local=False)
    losses = training_losses(model, BATCH, draws_with(LEFT), TASK, GEOMETRY)  # type: ignore[arg-type]
    (masked, masked_grad), (unmasked, unmasked_grad) = model.calls
    assert (masked_grad, unmasked_grad) == (False, True)
    half = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(2, 2, 4).flatten()  # frames, rows, columns
    assert torch.equal(masked, torch.stack([half, torch.ones(16), torch.ones(16)]))
    assert torch.equal(unmasked, torch.ones(3, 16))
    hidden = (REFERENCE[0].flatten(1) * (1 - half)).sum(1)  # (C,): the right half adds this to every token
    assert losses.locality is not None
    torch.testing.assert_close(losses.locality[0], hidden.square().mean())
    assert losses.locality[1:].tolist() == [0.0, 0.0]
    torch.testing.assert_close(losses.total(LOCAL), (losses.flow + 2 * losses.locality).mean())


def test_a_model_that_copies_locally_has_no_locality_loss() -> None:
    losses = training_losses(CopyingModel(local=True), BATCH, draws_with(LEFT), TASK, GEOMETRY)  # type: ignore[arg-type]
    assert losses.locality is not None
    assert not losses.locality.any()


def test_training_on_locality_alone_lowers_it(net: Transformer) -> None:
    """30 steps on the locality term alone, with the same noise and region, halve it."""
    draws, values = draws_with(LEFT), []
    adapter = [block.attn1.to_q.weight for block in net.transformer_blocks]
    optimizer = torch.optim.Adam(adapter, lr=3e-3)
    for _ in range(30):
        locality = training_losses(net, BATCH, draws, TASK, GEOMETRY).locality
        assert locality is not None
        optimizer.zero_grad()
        locality.sum().backward()
        optimizer.step()
        values.append(float(locality[0].detach()))
    assert values[-1] < 0.5 * values[0]


def test_locality_regions_are_drawn_only_with_the_setting_and_change_no_other_draw() -> None:
    plain, local = (draw_random(TARGET, flow, step_generator(0, 0, 0)) for flow in (Flow(), LOCAL))
    assert plain.locality_region is None
    assert local.locality_region is not None
    assert local.locality_region.shape == (3, 4)
    assert torch.equal(plain.noise, local.noise)
    assert local.region is None
    assert draw_random(TARGET, Flow(locality=1.0, locality_p=1e-9), step_generator(0, 0, 0)).locality_region is None


def test_a_weight_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"flow\.locality=-1\.0 must be 0 \(off\) or more"):
        Flow(locality=-1.0)


def test_clips_without_references_keep_what_the_base_predicts() -> None:
    net = tiny()
    parameters = lora.attach(net, Lora(rank=2))
    some = RandomDraws(
        torch.tensor([0.3, 0.5, 0.8]),
        torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(1)),
        torch.zeros(3, dtype=torch.bool),
        torch.tensor([True, False, True]),
    )

    def losses() -> tuple[Tensor, Tensor]:
        """Of each clip, with and without preservation."""
        return (
            training_losses(net, BATCH, some, TASK, GEOMETRY, partial(lora.adapter_off, net)).flow,
            training_losses(net, BATCH, some, TASK, GEOMETRY).flow,
        )

    preserved, plain = losses()  # B is zero: the adapter changes nothing
    assert preserved[1] == 0
    assert plain[1] > 0
    assert torch.equal(preserved[[0, 2]], plain[[0, 2]])
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    preserved, _ = losses()
    tokens, _ = build_tokens(BATCH, some, TASK, GEOMETRY)
    count = TARGET[0, 0].numel()
    with torch.no_grad():
        adapted = net(tokens, BATCH.text, num_outputs=count)
        with lora.adapter_off(net):
            base = net(tokens, BATCH.text, num_outputs=count)
    assert preserved[1].item() == pytest.approx((adapted - base)[1].square().mean().item(), rel=1e-5)
    preserved[1].backward()
    assert all(parameter.grad is not None for parameter in parameters)


def test_preserving_the_base_needs_clips_without_references() -> None:
    with pytest.raises(ConfigError, match=r"flow\.preserve_base=true .* set flow\.reference_p below 1"):
        Flow(preserve_base=True)
    assert Flow(preserve_base=True, reference_p=0.9).preserve_base


def test_references_get_their_share_of_noise_and_stay_clean_for_the_model() -> None:
    flow = Flow(reference_noise=0.5)
    draws = draw_random(BATCH.target, flow, step_generator(0, 0, 0))
    assert draws.reference_noise is not None
    assert 0 <= draws.reference_noise.min() < draws.reference_noise.max() <= 0.5
    tokens, _ = build_tokens(BATCH, draws, TASK, GEOMETRY)
    again, _ = build_tokens(BATCH, draws, TASK, GEOMETRY)
    clean, _ = build_tokens(BATCH, replace(draws, reference_noise=None), TASK, GEOMETRY)
    count = BATCH.target[0, 0].numel()
    assert torch.equal(tokens.latent, again.latent)
    assert torch.equal(tokens.latent[:, :count], clean.latent[:, :count])
    assert torch.equal(tokens.level, clean.level)
    latent = torch.ones(3, 2, 40, 10, 10)
    shares = replace(draws, reference_noise=torch.tensor([0.0, 0.25, 1.0]))
    noisy, other = (shares.noisy_reference(latent, number) for number in (0, 1))
    assert torch.equal(noisy[0], latent[0])
    for clip, share in ((1, 0.25), (2, 1.0)):
        assert noisy[clip].mean() == pytest.approx(1 - share, abs=0.05)
        assert noisy[clip].std() == pytest.approx(share, abs=0.05)
        assert not torch.equal(noisy[clip], other[clip])


def test_draws_are_those_of_earlier_versions_without_noise_on_references() -> None:
    plain, noisy = (
        draw_random(BATCH.target, flow, step_generator(0, 0, 0)) for flow in (Flow(), Flow(reference_noise=0.1))
    )
    assert plain.reference_noise is None
    assert torch.equal(plain.noise, noisy.noise)
    assert torch.equal(plain.sigma, noisy.sigma)
