"""The mel front end of the audio VAE: waveform -> logarithm of the mel spectrogram.

The same numbers as ltx-core's AudioProcessor, which is torchaudio's MelSpectrogram with Slaney's mel scale and norm,
magnitudes instead of powers, a Hann window, centred frames and reflected borders.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LINEAR = 200 / 3  # Hz per mel below 1 kHz; above, a mel is a factor in frequency
BREAK = 1000.0  # Hz
STEP = math.log(6.4) / 27  # logarithm of that factor: 27 mels from 1 to 6.4 kHz
FLOOR = 1e-5  # the logarithm is that of at least this magnitude


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Slaney's mel scale (Auditory Toolbox, 1998)."""
    logarithmic = BREAK / LINEAR + (hertz.clamp(min=BREAK) / BREAK).log() / STEP
    return torch.where(hertz < BREAK, hertz / LINEAR, logarithmic)


def mel_to_hertz(mel: Tensor) -> Tensor:
    """The inverse of `hertz_to_mel`."""
    start = BREAK / LINEAR
    return torch.where(mel < start, mel * LINEAR, BREAK * ((mel - start) * STEP).exp())


def mel_filters(sample_rate: int, window: int, bins: int) -> Tensor:
    """Triangular filters (M, window/2 + 1), fp32, equally wide in mel, from 0 to half the sample rate. Each has an area
    of 1 Hz (Slaney's norm)."""
    frequencies = torch.linspace(0, sample_rate // 2, window // 2 + 1, dtype=torch.float64)
    highest = hertz_to_mel(torch.tensor(sample_rate / 2, dtype=torch.float64)).item()
    edges = mel_to_hertz(torch.linspace(0.0, highest, bins + 2, dtype=torch.float64))[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()


class MelFrontEnd(nn.Module):
    """Waveforms (B,channels,S) -> log mel spectrograms (B,channels,L,M) in fp32. L is S / hop + 1, rounded down."""

    def __init__(self, sample_rate: int, window: int, hop: int, bins: int) -> None:
        super().__init__()
        self.window_size, self.hop = window, hop
        with torch.device("cpu"):  # also where the model is built on the meta device
            self.register_buffer("filters", mel_filters(sample_rate, window, bins), persistent=False)
            self.register_buffer("window", torch.hann_window(window), persistent=False)

    @property
    def least_samples(self) -> int:
        """The shortest waveform whose borders can be reflected."""
        return self.window_size // 2 + 1

    def forward(self, waveform: Tensor) -> Tensor:
        window: Tensor = self.get_buffer("window")
        flat = waveform.to(window).flatten(0, 1)
        spectrum = torch.stft(flat, self.window_size, self.hop, window=window, return_complex=True)  # (B channels,.,L)
        mel = self.get_buffer("filters") @ spectrum.abs()
        return mel.clamp(min=FLOOR).log().transpose(1, 2).unflatten(0, waveform.shape[:2])
