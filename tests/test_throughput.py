"""Throughput: operations as PyTorch counts them, rates over the time that was spent training, a measured peak."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.data.batch import Batch
from iclora_train.ltx2.model.transformer import BlockInputs, Transformer, TransformerConfig
from iclora_train.training.throughput import (
    THROUGHPUT_COLUMNS,
    ThroughputMeter,
    Work,
    batch_work,
    matmul_peak,
    step_flops,
)
from tests.command import run
from tests.tiny import SETTINGS, TRANSFORMER, composed, write_tiny_base, write_tiny_latents

OLD = {"apply_gated_attention": False, "cross_attention_adaln": False, "cross_attention_dim": 32}
CLIPS, TOKENS, TEXT, RANK = 2, 24, 5, 4
OFFICIAL = TransformerConfig(apply_gated_attention=True, cross_attention_adaln=True)


def counted(config: TransformerConfig, targets: list[str]) -> int:
    """Operations of the blocks, forwards and backwards, as PyTorch's own counter sees them."""
    net = Transformer(config)
    lora.attach(net, Lora(rank=RANK, targets=targets))
    x, text = torch.randn(CLIPS, TOKENS, config.width), torch.randn(CLIPS, TEXT, config.cross_attention_dim)
    modulation, level = torch.zeros(CLIPS, 1, config.rows, config.width), torch.zeros(CLIPS, TOKENS, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for block in net.transformer_blocks:
            x = block(x, BlockInputs(text, modulation, level, None))
        x.square().mean().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("more", [{}, OLD], ids=["2.3", "2.0"])
@pytest.mark.parametrize("only", [None, "attn"])
def test_a_step_has_the_operations_that_pytorch_counts(more: dict[str, int], only: str | None) -> None:
    config = TransformerConfig.from_metadata({**TRANSFORMER, **more})
    targets = [target for target in Lora().targets if only is None or target.startswith(only)]
    assert step_flops(config, RANK, tuple(targets), TOKENS, TEXT, CLIPS) == counted(config, targets)


def test_the_operations_of_an_official_base_are_those_of_its_formula() -> None:
    n, text, width = 16_000, 1024, 4096
    linears = 48 * (4 * 2 * n * width**2 + 4 * n * width**2 + 4 * text * width**2 + 16 * n * width**2)
    attention = 48 * 4 * n * (n + text) * width
    found = step_flops(OFFICIAL, 1, ("attn1.to_q",), n, text, 1)
    assert found == pytest.approx(2 * linears + 3 * attention, rel=0.02)
    assert step_flops(OFFICIAL, 1, ("attn1.to_q",), n, text, 3) == 3 * found
    assert step_flops(OFFICIAL, 64, ("attn1.to_q",), n, text, 1) > found


def test_the_work_of_a_batch_counts_targets_and_references() -> None:
    batch = Batch(
        target=torch.zeros(2, 8, 3, 4, 4),
        references=[torch.zeros(2, 8, 3, 2, 2), torch.zeros(2, 8, 1, 4, 4)],
        text=torch.zeros(2, 7, 4096),
        fps=torch.full((2,), 25.0),
        keys=["a", "b"],
    )
    work = batch_work(batch, OFFICIAL, 4, ("attn1.to_q",))
    assert (work.clips, work.tokens) == (2, 2 * (48 + 12 + 16))
    assert work.flops == step_flops(OFFICIAL, 4, ("attn1.to_q",), 76, 7, 2)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rates_leave_out_what_is_not_training_and_start_anew() -> None:
    clock = Clock()
    meter = ThroughputMeter(peak=4e12, devices=2, clock=clock)
    meter.add(Work(99, 99, 99), step_done=True)  # the first step: the meter does not run yet
    assert meter.collect() == {}
    meter.resume()
    for passed, done in ((1.0, False), (1.0, True), (2.0, True)):  # two batches are one step
        clock.now += passed
        meter.add(Work(clips=4, tokens=100, flops=10**12), step_done=done)
    meter.pause()
    clock.now += 1000  # held-out clips
    meter.resume()
    meter.resume()  # it runs already
    wanted = {"s_per_step": 2.0, "tokens_per_s": 150.0, "clips_per_s": 6.0, "tflops": 0.75, "mfu": 0.1875}
    assert meter.collect() == pytest.approx(wanted)
    assert tuple(wanted) == THROUGHPUT_COLUMNS[:-1]
    clock.now += 5
    meter.add(Work(1, 10, 10**12), step_done=True)
    assert meter.collect()["s_per_step"] == 5


def test_the_peak_of_this_machine_is_measured_once_and_quickly() -> None:
    begun = time.perf_counter()
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - begun < 5  # a fraction of a second, on a machine that does nothing else
    assert peak > 1e8
    assert matmul_peak(torch.device("cpu"), torch.float32) == peak


# ---- in a run


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a run of 7 steps on a tiny base."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_base(folder / "base")
    overrides = ["conf=deblur", f"model.checkpoint={base}", f"data.root={folder}/shards", *SETTINGS]
    overrides += ["model.lora.rank=4", "trainer.accelerator=cpu", "trainer.max_steps=7", "run=run", "logger=csv"]
    overrides += ["validation.loss_every=4", "validation.checkpoint_every=5", "validation.windows=2"]
    overrides += ["validation.sigmas=[0.5]", "eval.after_training=false", "sample.steps=1"]
    write_tiny_latents(folder / "shards" / "latents", base, composed(*overrides))
    return overrides


def test_throughput_has_a_file_of_its_own_and_a_line_on_the_screen(tiny: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "iclora_train", *tiny, "trainer.log_every_n_steps=3")
    assert (result.code, result.err) == (0, "")
    found = table(tmp_path / "runs/run/throughput.csv")
    assert [row["step"] for row in found] == ["3", "6", "7"]
    assert tuple(found[0])[1:] == THROUGHPUT_COLUMNS
    for row in found:
        assert all(float(row[name]) > 0 for name in THROUGHPUT_COLUMNS)
        assert float(row["clips_per_s"]) == pytest.approx(8 / float(row["s_per_step"]))
    (line,) = [line for line in result.out.splitlines() if line.startswith("step 7/7")]
    assert all(unit in line for unit in (" s/step", " tokens/s", " clips/s", " TFLOP/s", "MFU ", " GiB"))


def test_how_often_one_looks_changes_nothing_of_what_is_found(tiny: list[str], tmp_path: Path) -> None:
    made = []
    for every in (1, 3, 100):
        (tmp_path / str(every)).mkdir()
        assert run(tmp_path / str(every), "iclora_train", *tiny, f"trainer.log_every_n_steps={every}").code == 0
        folder = tmp_path / str(every) / "runs/run"
        made.append([(folder / name).read_bytes() for name in ("metrics.csv", "adapter.safetensors")])
    assert made[0] == made[1] == made[2]
    assert [row["step"] for row in table(tmp_path / "3/runs/run/metrics.csv")] == [*"01234567"]


def test_never_looking_is_refused(tiny: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "iclora_train", *tiny, "trainer.log_every_n_steps=0")
    assert result.code == 2
    assert "trainer.log_every_n_steps=0 must be at least 1" in result.err
