"""The Ray engine on a cluster of two nodes on this machine: what is promised of it holds when processes and nodes die.

Nothing is left behind: neither processes nor Ray's folder of sessions.
"""

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from data_prep import pipeline
from data_prep.engines.base import Engine, Failure
from data_prep.engines.local import create_engine
from iclora_train.config import ConfigError
from tests.engine_tasks import MortalEncoder, count_and_sleep, die_of_five
from tests.prep import check_results, config_of, contents, write_clips
from tests.tiny import write_tiny_base

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
# a node that refuses connections is lost after two seconds; one that is only slow may take 20 s
HEALTH = {"health_check_period_ms": 350, "health_check_failure_threshold": 6, "health_check_timeout_ms": 3000}


@pytest.fixture(scope="module")
def cluster() -> Iterator["cluster_utils.Cluster"]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}  # Ray replaces them
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, as the names of Ray's sockets must be
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        running = cluster_utils.Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": HEALTH})
        ray.init(address=running.address, logging_level="error", log_to_driver=False)
        yield running
        ray.shutdown()
        running.shutdown()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    deadline = time.monotonic() + 20
    while left := processes_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    shutil.rmtree(folder)


def processes_of(folder: str) -> list[str]:
    """The command lines that name a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            lines.append(path.read_text())
    return [line for line in lines if folder in line]


@pytest.fixture
def engine(cluster: "cluster_utils.Cluster") -> Iterator[Engine]:
    with closing(create_engine("ray", 2)) as engine:
        yield engine


def test_results_are_ordered_and_config_errors_are_raised(engine):
    check_results(engine)


def test_an_item_is_retried_once_when_its_process_dies(engine, tmp_path):
    results = list(engine.map(die_of_five, [(number, str(tmp_path)) for number in range(9)]))
    lost = results.pop(5)
    assert results == [0, 1, 2, 3, 4, 6, 7, 8]
    assert isinstance(lost, Failure)
    assert "died, 2 times" in lost.reason


def test_a_node_that_is_lost_costs_its_unfinished_items_once(cluster, engine, tmp_path):
    node = cluster.add_node(**NODE)
    items = [(number, str(tmp_path)) for number in range(16)]
    results = engine.map(count_and_sleep, items)
    first = [next(results) for _ in range(5)]
    cluster.remove_node(node, allow_graceful=False)
    assert first + list(results) == list(range(16))
    times = [len((tmp_path / str(number)).read_text()) for number in range(16)]
    assert max(times) <= 2
    assert sum(times) <= 16 + 4  # the items that were running or waiting there


def test_another_encoder_encodes_the_batch_of_one_that_died(engine, tmp_path):
    (encoder,) = engine.encoders(lambda: MortalEncoder(tmp_path))
    assert encoder.batch_pixels() == 12
    for batch in (["a", "b"], ["c", "once-1"], ["once-2"], ["d"]):
        assert encoder.encode_batch(batch) == [f"latents of {name}" for name in batch]
    with ThreadPoolExecutor(2) as threads:  # both calls are in the process that dies
        batches = [[f"once-{i}", "e"] for i in range(3, 5)]
        assert list(threads.map(encoder.encode_batch, batches)) == [[f"latents of {n}" for n in b] for b in batches]
    with pytest.raises(ConfigError, match=r"actors that encode died, 8 times .*: run the same command again"):
        encoder.encode_batch(["always"])


def test_shards_are_those_of_one_process_although_a_node_dies(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "SHARD_CLIPS", 12)
    base, clips = write_tiny_base(tmp_path / "base"), write_clips(tmp_path / "clips")
    pipeline.prepare(config_of(tmp_path / "one", clips, base, "data.workers=0"))
    node = cluster.add_node(**NODE)

    def remove_node() -> None:
        while not list((tmp_path / "many").rglob("*.tar.tmp")):
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=remove_node)
    killer.start()
    pipeline.prepare(config_of(tmp_path / "many", clips, base, "engine=ray", "data.workers=2"))
    killer.join()
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
