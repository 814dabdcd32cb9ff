"""Throughput: FLOPs as PyTorch counts them, rates over training time, and a measured peak."""

from __future__ import annotations

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
    Interval,
    Ranks,
    ThroughputMeter,
    Work,
    batch_work,
    matmul_peak,
    step_flops,
    throughput_row,
)
from tests.command import read_csv, run
from tests.tiny import SETTINGS, TRANSFORMER, composed, write_tiny_base, write_tiny_latents

OLD = {"apply_gated_attention": False, "cross_attention_adaln": False, "cross_attention_dim": 32}
CLIPS, TOKENS, TEXT, RANK = 2, 24, 5, 4
OFFICIAL = TransformerConfig(apply_gated_attention=True, cross_attention_adaln=True)


def queries(rank: int) -> Ranks:
    """An adapter on the query of self-attention of every block."""
    return tuple((f"transformer_blocks.{i}.attn1.to_q", rank) for i in range(OFFICIAL.num_layers))


def counted_flops(config: TransformerConfig, settings: Lora) -> tuple[int, Ranks]:
    """FLOPs of the blocks, forward and backward, by PyTorch's counter, and the ranks of the adapter."""
    net = Transformer(config)
    lora.attach(net, settings)
    x, text = torch.randn(CLIPS, TOKENS, config.width), torch.randn(CLIPS, TEXT, config.cross_attention_dim)
    modulation, level = torch.zeros(CLIPS, 1, config.rows, config.width), torch.zeros(CLIPS, TOKENS, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for block in net.transformer_blocks:
            x = block(x, BlockInputs(text, modulation, level, None))
        x.square().mean().backward()
    return counter.get_total_flops(), lora.ranks(net)


@pytest.mark.parametrize("changes", [{}, OLD], ids=["2.3", "2.0"])
@pytest.mark.parametrize(
    "settings",
    [
        Lora(rank=RANK),
        Lora(rank=RANK, targets=["self_attention", "text_attention"]),
        Lora(rank=RANK, rank_pattern={"transformer_blocks.1": 2, "to_k": 8, "ff.net.2": 6}),
    ],
    ids=["all", "attention", "several ranks"],
)
def test_a_step_has_the_flops_that_pytorch_counts(changes: dict[str, int], settings: Lora) -> None:
    config = TransformerConfig.from_metadata({**TRANSFORMER, **changes})
    flops, ranks = counted_flops(config, settings)
    assert step_flops(config, ranks, TOKENS, TEXT, CLIPS) == flops


def test_the_flops_of_an_official_base_match_the_closed_formula() -> None:
    n, text, width = 16_000, 1024, 4096
    linears = 48 * (4 * 2 * n * width**2 + 4 * n * width**2 + 4 * text * width**2 + 16 * n * width**2)
    attention = 48 * 4 * n * (n + text) * width
    flops = step_flops(OFFICIAL, queries(1), n, text, 1)
    assert flops == pytest.approx(2 * linears + 3 * attention, rel=0.02)
    assert step_flops(OFFICIAL, queries(1), n, text, 3) == 3 * flops
    assert step_flops(OFFICIAL, queries(64), n, text, 1) > flops


def test_the_work_of_a_batch_counts_targets_and_references() -> None:
    batch = Batch(
        target=torch.zeros(2, 8, 3, 4, 4),
        references=[torch.zeros(2, 8, 3, 2, 2), torch.zeros(2, 8, 1, 4, 4)],
        text=torch.zeros(2, 7, 4096),
        fps=torch.full((2,), 25.0),
        keys=["a", "b"],
    )
    work = batch_work(batch, OFFICIAL, queries(4))
    assert (work.clips, work.tokens) == (2, 2 * (48 + 12 + 16))
    assert work.flops == step_flops(OFFICIAL, queries(4), 76, 7, 2)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rates_exclude_paused_time_and_restart_after_each_read() -> None:
    clock = Clock()
    meter = ThroughputMeter(peak=4e12, clock=clock)
    meter.add(Work(99, 99, 99), step_done=True)  # the first step: the meter is not running yet
    assert throughput_row([meter.collect()]) == {}
    meter.resume()
    for seconds, step_done in ((1.0, False), (1.0, True), (2.0, True)):  # two batches are one step
        clock.now += seconds
        meter.add(Work(clips=4, tokens=100, flops=10**12), step_done=step_done)
    meter.pause()
    clock.now += 1000  # validation
    meter.resume()
    meter.resume()  # already running
    expected = {"s_per_step": 2.0, "tokens_per_s": 75.0, "clips_per_s": 3.0, "tflops": 0.75, "mfu": 0.1875}
    assert throughput_row([meter.collect()]) == pytest.approx(expected)
    assert tuple(expected) == THROUGHPUT_COLUMNS[:-1]
    clock.now += 5
    meter.add(Work(1, 10, 10**12), step_done=True)
    assert throughput_row([meter.collect()])["s_per_step"] == 5


def test_the_work_of_all_ranks_counts_and_the_slowest_rank_sets_the_pace() -> None:
    """The batches of a step may differ: rank 1 has twice the tokens of rank 0."""
    slow, fast = Interval(4.0, 2, Work(2, 200, 5 * 10**12), 3e12), Interval(3.0, 2, Work(2, 100, 3 * 10**12), 1e12)
    expected = {"s_per_step": 2.0, "tokens_per_s": 75.0, "clips_per_s": 1.0, "tflops": 1.0, "mfu": 0.5}
    assert throughput_row([fast, slow]) == pytest.approx(expected)


def test_the_peak_of_the_device_is_measured_once_and_quickly() -> None:
    start = time.process_time()  # other processes do not count
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    assert time.process_time() - start < 5
    assert peak > 1e8
    assert matmul_peak(torch.device("cpu"), torch.float32) == peak


# --- in a run ---


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


def test_throughput_is_in_its_own_file_and_on_the_console(tiny: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "iclora_train", *tiny, "trainer.log_every_n_steps=3")
    assert (result.code, result.err) == (0, "")
    rows = read_csv(tmp_path / "runs/run/throughput.csv")
    assert [row["step"] for row in rows] == ["3", "6", "7"]
    assert tuple(rows[0])[1:] == THROUGHPUT_COLUMNS
    for row in rows:
        assert all(float(row[name]) > 0 for name in THROUGHPUT_COLUMNS)
        assert float(row["clips_per_s"]) == pytest.approx(8 / float(row["s_per_step"]))
    (line,) = [line for line in result.out.splitlines() if line.startswith("step 7/7")]
    assert all(unit in line for unit in (" s/step", " tokens/s", " clips/s", " TFLOP/s", "MFU ", " GiB"))


def test_log_and_adapter_do_not_depend_on_how_often_metrics_are_read(tiny: list[str], tmp_path: Path) -> None:
    results = []
    for interval in (1, 3, 100):
        (tmp_path / str(interval)).mkdir()
        assert run(tmp_path / str(interval), "iclora_train", *tiny, f"trainer.log_every_n_steps={interval}").code == 0
        folder = tmp_path / str(interval) / "runs/run"
        results.append([(folder / name).read_bytes() for name in ("metrics.csv", "adapter.safetensors")])
    assert results[0] == results[1] == results[2]
    assert [row["step"] for row in read_csv(tmp_path / "3/runs/run/metrics.csv")] == [*"01234567"]


def test_an_interval_of_0_is_refused(tiny: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "iclora_train", *tiny, "trainer.log_every_n_steps=0")
    assert result.code == 2
    assert "trainer.log_every_n_steps=0 must be at least 1" in result.err
