"""A LoKr is converted to the best LoRA of a rank; its weight change is that of peft's LoKr layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoKrConfig, inject_adapter_in_model
from peft.tuners.lokr import Linear
from safetensors.torch import save_file
from torch import Tensor, nn

from iclora_train.adapters.check import check
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import read
from iclora_train.adapters.lokr import to_lora
from iclora_train.adapters.low_rank import LowRank
from iclora_train.config import ConfigError
from tests.adapter_files import BARE_QUERY, LTX, PUBLISHED, VIDEO, adapter_for, same
from tests.test_adapters import run

OUT, IN = 48, 32
NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


def low_rank(rank: int) -> LowRank:
    return LowRank(rank, torch.Generator().manual_seed(0))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def peft_layer(alpha: float, **settings: int | bool) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a random LoKr layer of peft, and its weight change (OUT, IN)."""
    model = nn.Sequential(nn.Linear(IN, OUT))
    inject_adapter_in_model(LoKrConfig(alpha=alpha, target_modules=["0"], init_weights=False, **settings), model)  # type: ignore[arg-type]
    layer = model[0]
    assert isinstance(layer, Linear)
    parts = {}
    for name in NAMES:
        stored = getattr(layer, name)
        if "default" in stored:
            stored["default"].data = random(*stored["default"].shape, seed=len(name))
            parts[name] = stored["default"].detach()
    return parts, layer.get_delta_weight("default").detach()


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({"r": 2}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
        ({"r": 2, "decompose_both": True}, {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}),
        ({"r": 8}, {"lokr_w1", "lokr_w2"}),
        ({"r": 2, "decompose_factor": 4}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    ],
    ids=["w2 product", "both products", "whole", "factor 4"],
)
def test_at_the_exact_rank_the_weight_change_is_that_of_peft(settings: dict[str, int], stored: set[str]) -> None:
    alpha = 8.0 if stored == {"lokr_w1", "lokr_w2"} else 3.0  # alpha counts only beside a product; peft's always does
    parts, expected = peft_layer(alpha, **settings)
    assert parts.keys() == stored
    into = low_rank(min(OUT, IN))
    a, b = to_lora("x", parts, lambda name, dimension: alpha / dimension, into)
    torch.testing.assert_close(b @ a, expected, rtol=1e-4, atol=1e-4)
    assert into.error < 1e-5
    smaller = low_rank(into.exact)
    assert len(to_lora("x", parts, lambda name, dimension: alpha / dimension, smaller)[0]) == into.exact == len(a)
    assert smaller.error < 1e-5


def test_a_tucker_core_is_read() -> None:
    """The core of a 1x1 convolution: w2 = w2_a^T core w2_b."""
    parts = {"lokr_w1": random(4, 4), "lokr_t2": random(3, 3, 1, 1, seed=1)}
    parts |= {"lokr_w2_a": random(3, 12, seed=2), "lokr_w2_b": random(3, 8, seed=3)}
    w2 = parts["lokr_w2_a"].T @ parts["lokr_t2"][:, :, 0, 0] @ parts["lokr_w2_b"]
    a, b = to_lora("x", parts, lambda name, dimension: 6 / dimension, low_rank(12))
    torch.testing.assert_close(b @ a, 2 * torch.kron(parts["lokr_w1"], w2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("sizes", [((4, 4), (12, 8)), ((2, 2), (300, 200)), ((8, 1), (3, 40))])
def test_a_smaller_rank_gives_the_truncated_svd_and_its_error(
    rank: int, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    w1, w2 = random(*sizes[0]), random(*sizes[1], seed=1) * torch.linspace(0, 3, sizes[1][1]).exp()
    change, into = torch.kron(w1, w2), low_rank(rank)
    a, b = to_lora("x", {"lokr_w1": w1, "lokr_w2": w2}, lambda name, dimension: 1.0, into)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    error = float((change - b @ a).norm() / change.norm())
    assert error <= float((change - best).norm() / change.norm()) * 1.02 + 1e-6  # 2 %: the SVD starts at random
    assert into.error == pytest.approx(error, abs=1e-4)
    assert into.worst == ("x", pytest.approx(error, abs=1e-4))
    assert len(a) <= rank


STYLES: dict[str, Callable[[str], str]] = {
    "ai-toolkit": lambda name: f"diffusion_model.{name}",
    "LyCORIS": lambda name: "lycoris_" + name.replace(".", "_"),
    "kohya": lambda name: "lora_unet_" + name.replace(".", "_"),
    "diffusers": lambda name: f"transformer.{name}",
}


def lokr_file(path: Path, style: str = "ai-toolkit", **changes: Tensor | None) -> dict[str, Tensor]:
    """A LoKr for the linears of VIDEO; returns their weight changes. Alpha 2 of rank 4 halves them."""
    tensors, expected = {}, {}
    for seed, name in enumerate(VIDEO):
        out, inputs = PUBLISHED.linears[name]
        parts: dict[str, Tensor | None] = {
            "lokr_w1": random(2, 4, seed=seed),
            "lokr_w2_a": random(out // 2, 4, seed=seed + 10),
            "lokr_w2_b": random(4, inputs // 4, seed=seed + 20),
            "alpha": torch.tensor(2.0),
        }
        w1, w2_a, w2_b = list(parts.values())[:3]
        assert w1 is not None
        assert w2_a is not None
        assert w2_b is not None
        expected[name] = 0.5 * torch.kron(w1, w2_a @ w2_b)
        parts |= changes if name == BARE_QUERY else {}
        tensors |= {f"{STYLES[style](name)}.{key}": value for key, value in parts.items() if value is not None}
    save_file(tensors, path, {**LTX, "ss_network_alpha": "2"})
    return expected


@pytest.mark.parametrize("style", STYLES)
def test_the_keys_of_every_style_are_converted(tmp_path: Path, style: str) -> None:
    expected, into = lokr_file(tmp_path / "a.safetensors", style), low_rank(8)
    adapter = import_adapter(tmp_path / "a.safetensors", low_rank=into)
    assert same(adapter, expected, 1e-4)
    assert (adapter.metadata["rank"], into.exact) == ("8", 8)
    assert "ss_network_alpha" not in adapter.metadata


def test_the_command_says_what_the_lora_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    expected = lokr_file(path)
    code, text, _ = run("convert", path, out, "--rank", "3", "--dtype", "fp32", capsys=capsys)
    assert code == 0
    adapter = read(out)
    changes = {name: b @ a for name, (a, b) in adapter.weights.items()}
    lost = sum(float((expected[name] - change).square().sum()) for name, change in changes.items())
    error = (lost / sum(float(change.square().sum()) for change in expected.values())) ** 0.5
    assert f"the LoRA leaves out {error:.2%} of the adapter's change of the weights (Frobenius norm), most in " in text
    assert "; --rank 8 leaves out nothing" in text
    assert float(adapter.metadata["low_rank_error"]) == pytest.approx(error, rel=0.1)
    assert run("check", out, capsys=capsys)[0] == 0
    assert "left out by conversion to a plain LoRA" in card_of(out, capsys)


def card_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run("card", path, capsys=capsys)[0] == 0
    return path.with_suffix(".md").read_text()


def test_commands_that_need_a_lora_name_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    lokr_file(path)
    remedy = "convert FILE OUT --rank N` makes a plain LoRA of it"
    with pytest.raises(ConfigError, match=r"of another kind of adapter \(LoKr\).*--rank N` makes a plain LoRA"):
        import_adapter(path)  # as generate and eval
    assert any(remedy in finding for finding in check(path))
    for arguments in (("check", path), ("combine", "--adapter", path, "1", tmp_path / "b.safetensors")):
        code, _, err = run(*arguments, capsys=capsys)
        assert code == 2
        assert remedy in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lokr_w1": None}, "attn1.to_q must have lokr_w1, or lokr_w1_a and lokr_w1_b; it has lokr_w2_a, lokr_w2_b"),
        ({"lokr_w2_a": None}, "must have lokr_w2, or lokr_w2_a and lokr_w2_b; it has lokr_w1, lokr_w2_b"),
        ({"lokr_w2_b": torch.ones(5, 1024)}, r"lokr_w2_a \(4, 4\), lokr_w2_b \(5, 1024\), which do not multiply"),
        ({"lokr_w1": torch.full((2, 4), torch.nan)}, "attn1.to_q.lokr_w1 holds NaN or infinity"),
        ({"lokr_w1": torch.ones(2, 4, dtype=torch.int32)}, "lokr_w1 is stored as torch.int32"),
        ({"lokr_w1": torch.ones(2, 4, 3, 3)}, r"w1 \(2, 4, 3, 3\) and w2 \(4, 1024\); those of a linear are matrices"),
        ({"lokr_w1": torch.ones(2, 8)}, "the adapter fits a linear 8192 -> 8, the base has 4096 -> 8"),
        ({"lora_A.weight": torch.ones(2, 4096)}, "attn1.to_q has factors of a LoRA and of a LoKr"),
        ({"dora_scale": torch.ones(8, 1)}, r"attn1.to_q has a magnitude \(DoRA\) without a LoRA"),
        ({"alpha": torch.tensor(torch.inf)}, "alpha of transformer_blocks.0.attn1.to_q is 'inf'"),
        ({"alpha": torch.tensor(3e38)}, "attn1.to_q: alpha makes the LoKr larger than fp32 can hold"),
    ],
)
def test_a_lokr_that_cannot_be_converted_is_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    lokr_file(tmp_path / "a.safetensors", **changes)
    with pytest.raises(ConfigError, match=message):
        import_adapter(tmp_path / "a.safetensors", PUBLISHED, low_rank=low_rank(8))


def test_alpha_beside_whole_matrices_is_not_used(tmp_path: Path) -> None:
    """ai-toolkit writes 1e10 there, which fp16 cannot hold."""
    whole = {"lokr_w2": random(4, 1024), "lokr_w2_a": None, "lokr_w2_b": None}
    lokr_file(tmp_path / "a.safetensors", **whole, alpha=torch.tensor(torch.inf))
    adapter = import_adapter(tmp_path / "a.safetensors", low_rank=low_rank(8))
    a, b = adapter.weights[BARE_QUERY]
    torch.testing.assert_close(b @ a, torch.kron(random(2, 4), random(4, 1024)), rtol=1e-3, atol=1e-3)


def test_a_rank_is_only_for_a_lokr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from iclora_train.adapters.file import save  # noqa: PLC0415

    save(tmp_path / "a.safetensors", adapter_for(PUBLISHED, VIDEO))
    code, _, err = run("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--rank", "8", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "is a plain LoRA, whose rank `combine --rank` changes" in err
    peft_style = {f"base_model.model.{BARE_QUERY}.lokr_w1": torch.ones(2, 2)}
    save_file(peft_style, tmp_path / "peft.safetensors")
    with pytest.raises(ConfigError, match=r"a LoKr of peft, whose scale is in adapter_config\.json"):
        import_adapter(tmp_path / "peft.safetensors", None, ReferenceFactors(1), low_rank(8))
