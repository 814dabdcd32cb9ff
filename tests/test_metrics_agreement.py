"""Our PSNR and SSIM agree with scikit-image, ffmpeg and torchmetrics."""

from __future__ import annotations

import av
import av.filter
import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from eval.metrics import Clip
from eval.metrics.picture import decibel, psnr, psnr_y, ssim
from tests import doses
from tests.doses import scene

OUTPUTS = {
    "blur": doses.blur(scene(), 1),
    "noise": doses.noise(scene(), 9),
    "shift": doses.shift(scene(), 1),
    "another": scene(1),
}


@pytest.fixture(params=OUTPUTS)
def output(request: pytest.FixtureRequest) -> Clip:
    return OUTPUTS[request.param]


def test_psnr_and_ssim_agree_with_scikit_image(output: Clip) -> None:
    pairs = list(zip(scene(), output, strict=True))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [structural_similarity(a, b, channel_axis=-1, **settings) for a, b in pairs]
    assert ssim(output, scene()) == pytest.approx(expected, abs=1e-3)
    assert psnr(output, scene()) == pytest.approx([peak_signal_noise_ratio(a, b) for a, b in pairs], abs=1e-3)
    lumas = [(rgb2ycbcr(a)[..., 0], rgb2ycbcr(b)[..., 0]) for a, b in pairs]
    expected = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in lumas]
    assert psnr_y(output, scene()) == pytest.approx(expected, abs=1e-3)


def ffmpeg_psnr(output: Clip, target: Clip) -> list[float]:
    """PSNR of each frame over R, G and B by ffmpeg's filter `psnr`."""
    graph = av.filter.Graph()
    size = {"width": output.shape[2], "height": output.shape[1], "format": "rgb24", "time_base": "1/25"}
    sources = [graph.add_buffer(**size) for _ in range(2)]
    planar = [graph.add("format", "gbrp") for _ in range(2)]
    compare, sink = graph.add("psnr"), graph.add("buffersink")
    for i in range(2):
        sources[i].link_to(planar[i])
        planar[i].link_to(compare, 0, i)
    compare.link_to(sink)
    graph.configure()
    values = []
    for number, pair in enumerate(zip(output, target, strict=True)):
        for source, pixels in zip(sources, pair, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number
            source.push(frame)
        values.append(float(sink.pull().metadata["lavfi.psnr.psnr_avg"]))
    return values


def test_psnr_agrees_with_ffmpeg(output: Clip) -> None:
    assert psnr(output, scene()) == pytest.approx(ffmpeg_psnr(output, scene()), abs=1e-3)


def test_psnr_agrees_with_torchmetrics(output: Clip) -> None:
    """This checks `decibel` too, the formula for masks and luma."""
    squares = ((a.astype(float) - b) ** 2 for a, b in zip(output, scene(), strict=True))
    assert psnr(output, scene()) == pytest.approx([decibel(float(square.mean())) for square in squares], abs=1e-4)


def test_ssim_differs_from_torchmetrics() -> None:
    """The SSIM of torchmetrics is not used because it also scores the border, where it reflects pixels."""
    a, b = (torch.from_numpy(clip[:1]).permute(0, 3, 1, 2).float() for clip in (OUTPUTS["blur"], scene()))
    expected = float(structural_similarity_index_measure(a, b, data_range=255.0))
    assert abs(expected - ssim(OUTPUTS["blur"][:1], scene()[:1])[0]) > 1e-3
