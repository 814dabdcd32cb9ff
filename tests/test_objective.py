"""The objective: the flow loss alone by default, and regions that are drawn to what they are by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iclora_train.config import ConfigError, Flow, Task
from iclora_train.core.types import Geometry, Tokens
from iclora_train.data.batch import Batch
from iclora_train.diffusion.flow_matching import masked_loss
from iclora_train.diffusion.loss import training_losses
from iclora_train.diffusion.training_inputs import WHOLE_FRAME, RandomDraws, build_tokens, draw_random, step_generator
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
LEFT = torch.tensor([[0.0, 1.0, 0.0, 0.5], WHOLE_FRAME, WHOLE_FRAME])  # the first clip has the left half for itself


def drawn(local: Tensor | None) -> RandomDraws:
    plain = draw_random(TARGET, Flow(), step_generator(0, 0, 0))
    return RandomDraws(
        plain.sigma, plain.noise, plain.clean_first_frame & False, plain.use_references, locality_region=local
    )


class Copying:
    """In the place of a transformer: the velocity of a target token is a sum over all visible reference tokens, each
    as far as it is `near`: the model that sees all, and the one that keeps to its place."""

    def __init__(self, near: bool) -> None:
        self.near, self.seen, self.gain = near, [], torch.tensor(1.0, requires_grad=True)

    def __call__(self, tokens: Tokens, text: Tensor, count: int) -> Tensor:
        weight = torch.ones(tokens.latent.shape[:2]) if tokens.weight is None else tokens.weight
        self.seen.append((weight[:, count:], torch.is_grad_enabled()))
        given = tokens.latent[:, count:] * weight[:, count:, None]
        return self.gain * (given if self.near else given.sum(1, keepdim=True).expand(-1, count, -1))


@pytest.fixture(scope="module")
def net() -> Transformer:
    return tiny()


def test_without_the_setting_it_is_the_flow_loss_of_one_pass() -> None:
    draws, model = draw_random(TARGET, Flow(), step_generator(0, 0, 0)), Copying(near=False)
    found = training_losses(model, BATCH, draws, TASK, GEOMETRY)  # type: ignore[arg-type]
    tokens, wanted = build_tokens(BATCH, draws, TASK, GEOMETRY)
    count = wanted.shape[1]
    assert len(model.seen) == 1
    assert found.locality is None
    assert torch.equal(found.flow, masked_loss(model(tokens, BATCH.text, count), wanted, tokens.loss_mask[:, :count]))
    assert torch.equal(found.total(Flow()), found.flow.mean())


def test_the_second_pass_sees_the_region_only_and_has_no_gradient() -> None:
    model = Copying(near=False)
    found = training_losses(model, BATCH, drawn(LEFT), TASK, GEOMETRY)  # type: ignore[arg-type]
    (narrow, with_gradient), (all_of_it, trained) = model.seen
    assert (with_gradient, trained) == (False, True)
    half = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(2, 2, 4).flatten()  # frames, rows, columns
    assert torch.equal(narrow, torch.stack([half, torch.ones(16), torch.ones(16)]))
    assert torch.equal(all_of_it, torch.ones(3, 16))
    hidden = (REFERENCE[0].flatten(1) * (1 - half)).sum(1)  # (C,): what the right half adds everywhere
    assert found.locality is not None
    torch.testing.assert_close(found.locality[0], hidden.square().mean())
    assert found.locality[1:].tolist() == [0.0, 0.0]
    torch.testing.assert_close(found.total(LOCAL), (found.flow + 2 * found.locality).mean())


def test_what_keeps_to_its_place_costs_nothing() -> None:
    found = training_losses(Copying(near=True), BATCH, drawn(LEFT), TASK, GEOMETRY)  # type: ignore[arg-type]
    assert found.locality is not None
    assert not found.locality.any()


def test_its_gradient_makes_a_region_independent_of_the_rest(net: Transformer) -> None:
    """Steps on the term alone: the same noise, the same region, and what the rest changes there becomes less."""
    draws, seen = drawn(LEFT), []
    adapter = [block.attn1.to_q.weight for block in net.transformer_blocks]
    optimizer = torch.optim.Adam(adapter, lr=3e-3)
    for _ in range(30):
        apart = training_losses(net, BATCH, draws, TASK, GEOMETRY).apart
        assert apart is not None
        optimizer.zero_grad()
        apart.sum().backward()
        optimizer.step()
        seen.append(float(apart[0].detach()))
    assert seen[-1] < 0.5 * seen[0]


def test_regions_are_drawn_where_they_are_asked_for_and_change_no_other_draw() -> None:
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
