"""The adapter: attached, exported, read back, refused when it is wrong or lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iclora_train import lora
from iclora_train.config import ConfigError, Lora
from iclora_train.ltx2.transformer import Transformer, TransformerConfig
from iclora_train.pair import Geometry, Tokens
from iclora_train.reference import append_reference, target_tokens
from tests.tiny import CHANNELS, TEXT, TRANSFORMER, WIDTH

METADATA = {"reference_downscale_factor": "1", "base_model_family": "tiny", "base_model_version": "2.3"}
PREFIX = "diffusion_model.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def transformer() -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Transformer(TransformerConfig.from_metadata(TRANSFORMER)).requires_grad_(False)


def trained(transformer: nn.Module, settings: Lora) -> list[nn.Parameter]:
    """Attach an adapter and give its B halves values, as training would."""
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


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(transformer: Transformer) -> None:
    given = tokens_and_text()
    before = transformer(*given)
    parameters = lora.attach(transformer, Lora(rank=4))
    assert torch.equal(transformer(*given), before)
    assert {id(p) for p in transformer.parameters() if p.requires_grad} == {id(p) for p in parameters}
    names = [name for name, _ in lora.layers(transformer)]
    assert len(names) == 2 * 10  # blocks x targets
    assert names[0] == "transformer_blocks.0.attn1.to_q"


def test_attaching_is_seeded_and_leaves_random_state_alone(transformer: Transformer) -> None:
    state = torch.get_rng_state()
    first = [p.clone() for p in lora.attach(transformer, Lora(rank=4), generator_seed=3)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    other = Transformer(TransformerConfig.from_metadata(TRANSFORMER))
    for a, b in zip(first, lora.attach(other, Lora(rank=4), generator_seed=3), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_a_saved_adapter_gives_the_same_model(transformer: Transformer, tmp_path: Path, alpha: float | None) -> None:
    given = tokens_and_text()
    base = transformer(*given)
    trained(transformer, Lora(rank=4, alpha=alpha))
    wanted = transformer(*given)
    with lora.adapter_off(transformer):
        assert torch.equal(transformer(*given), base)
    assert torch.equal(transformer(*given), wanted)
    path = tmp_path / "a.safetensors"
    lora.save(path, lora.Adapter(lora.extract(transformer), METADATA))
    torch.manual_seed(0)
    fresh = Transformer(TransformerConfig.from_metadata(TRANSFORMER))
    lora.load_into(fresh, lora.read(path))
    assert torch.allclose(fresh(*given), wanted, atol=1e-5)
    assert not torch.allclose(wanted, base, atol=1e-3)


def test_the_file_keeps_the_contract(transformer: Transformer, tmp_path: Path) -> None:
    trained(transformer, Lora(rank=4, alpha=8))
    linear = transformer.get_submodule("transformer_blocks.1.ff.net.2")
    path = tmp_path / "a.safetensors"
    lora.save(path, lora.Adapter(lora.extract(transformer), METADATA), torch.bfloat16)
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
    trained(transformer, Lora(rank=2))
    adapter = lora.Adapter(lora.extract(transformer), {**METADATA, **{f"key{i}": str(i) for i in range(20)}})
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path in files:
        lora.save(path, adapter)
    assert len({path.read_bytes() for path in files}) == 1


def test_diffusers_reads_the_file(transformer: Transformer, tmp_path: Path) -> None:
    trained(transformer, Lora(rank=4, alpha=8))
    weights = lora.extract(transformer)
    lora.save(tmp_path / "a.safetensors", lora.Adapter(weights, METADATA))
    state, metadata = LTX2Pipeline.lora_state_dict(str(tmp_path / "a.safetensors"), return_lora_metadata=True)
    assert metadata is None  # alpha is in the weights, so nothing is to be scaled
    assert len(state) == 2 * len(weights)
    for name, (a, b) in weights.items():
        assert torch.equal(state[f"transformer.{name}.lora_A.weight"], a)
        assert torch.equal(state[f"transformer.{name}.lora_B.weight"], b)


def write(path: Path, changes: dict[str, Tensor | None], metadata: dict[str, str] | None = None) -> Path:
    """A small adapter file with some keys changed or (None) taken away."""
    whole: dict[str, Tensor | None] = {
        f"{PREFIX}.lora_A.weight": torch.ones(2, WIDTH),
        f"{PREFIX}.lora_B.weight": torch.ones(WIDTH, 2),
        **changes,
    }
    save_file({key: t for key, t in whole.items() if t is not None}, path, METADATA if metadata is None else metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_unet_x.alpha": torch.ones(1)}, "key 'lora_unet_x.alpha' is not diffusion_model"),
        ({f"{PREFIX}.lora_A.default.weight": torch.ones(2, WIDTH)}, "lora_A.default.weight' is not"),
        ({f"{PREFIX}.alpha": torch.ones(1)}, "alpha' is not"),
        ({f"{PREFIX}.lora_B.weight": None}, "has lora_A without the other half"),
        ({f"{PREFIX}.lora_B.weight": torch.ones(WIDTH, 3)}, "which do not multiply"),
        ({f"{PREFIX}.lora_B.weight": torch.zeros(WIDTH, 2)}, "every lora_B is zero"),
        ({f"{PREFIX}.lora_A.weight": torch.full((2, WIDTH), torch.nan)}, "holds NaN or infinity"),
        ({f"{PREFIX}.lora_A.weight": None, f"{PREFIX}.lora_B.weight": None}, "holds no adapter weights"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, Tensor | None], said: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.safetensors") as caught:
        lora.read(write(tmp_path / "a.safetensors", changes))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"base_model_family": "tiny"}, "lacks reference_downscale_factor"),
        ({"reference_downscale_factor": "0"}, "'0' must be a whole number"),
        ({"reference_downscale_factor": "1.5"}, "'1.5' must be a whole number"),
        ({"reference_downscale_factor": "1", "reference_temporal_scale_factor": "x"}, "'x' must be a whole number"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, metadata: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.safetensors") as caught:
        lora.read(write(tmp_path / "a.safetensors", {}, metadata))
    assert said in str(caught.value)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("hello")
    with pytest.raises(ConfigError, match="is not a readable safetensors file"):
        lora.read(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="is not a readable safetensors file"):
        lora.read(tmp_path / "none.safetensors")


def test_an_adapter_for_another_base_is_refused(transformer: Transformer, tmp_path: Path) -> None:
    adapter = lora.read(write(tmp_path / "a.safetensors", {}))
    lora.check_base(tmp_path, adapter, "tiny", "2.3")
    with pytest.raises(ConfigError, match=r"was trained on tiny 2\.3, this base is ltx 2\.3"):
        lora.check_base(tmp_path, adapter, "ltx", "2.3")
    with pytest.raises(ConfigError, match=r"this base is tiny 2\.0"):
        lora.check_base(tmp_path, adapter, "tiny", "2.0")
    with pytest.raises(ConfigError, match=r"was trained on other weights of tiny 2\.3"):
        lora.check_base(tmp_path, adapter, "tiny", "2.3", "0123")
    half = torch.ones(2, 7)
    with pytest.raises(ConfigError, match="fits a linear 7 -> 48, the base has 48 -> 48"):
        lora.load_into(transformer, lora.Adapter({PREFIX[16:]: (half, torch.ones(WIDTH, 2))}, METADATA))
    with pytest.raises(ConfigError, match="weights for other, which the base does not have"):
        lora.load_into(transformer, lora.Adapter({"other": (half, torch.ones(WIDTH, 2))}, METADATA))


def test_header_is_padded_to_eight_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    adapter = lora.Adapter({PREFIX[16:]: (torch.ones(2, WIDTH), torch.ones(WIDTH, 2))}, METADATA)
    lora.save(path, adapter)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    assert next(iter(json.loads(data[8 : 8 + size]))) == "__metadata__"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Lora(rank=49), "model.lora.rank=49 is above 48"),
        (Lora(targets=["attn1.to_x"]), "no linear 'attn1.to_x' in the base; it has attn1.to_gate_logits, attn1.to_k"),
    ],
)
def test_what_the_base_cannot_carry_is_refused(transformer: Transformer, settings: Lora, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lora.attach(transformer, settings)
    assert said in str(caught.value)


def test_rank_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.rank=0 must be at least 1"):
        Lora(rank=0)
