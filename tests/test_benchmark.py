"""The benchmark's plain way computes what ours does, with the noise level of every token modulating it by itself."""

from __future__ import annotations

import pytest
import torch

from scripts.benchmark import plainly
from scripts.synthetic.random_base import RandomBase
from tests.test_compiled import scene


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_the_plain_way_gives_the_same_and_picks_nothing(version: str) -> None:
    net, tokens = RandomBase(version, "tiny").transformer(), scene(8)
    text = torch.randn(1, 5, net.config.text_width, generator=torch.Generator().manual_seed(1))
    rows: list[int] = []
    net.adaln_single.register_forward_hook(lambda _module, given, _result: rows.append(given[0].shape[1]))
    with torch.no_grad():
        wanted = net(tokens, text)
        with plainly(), torch.profiler.profile() as recorded:
            found = net(tokens, text)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert rows == [2, len(tokens.group)]
    assert "aten::where" not in {event.name for event in recorded.events()}
