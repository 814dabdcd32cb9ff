"""The vocoder of the LTX-2 family: log mel spectrogram -> waveform, around diffusers' LTX2Vocoder(WithBWE).

It always computes in fp32: ltx-core reports that sums in bf16, over its 108 convolutions, change spectra by 40 to 90 %.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE, UpSample1d
from torch import Tensor, nn

from iclora_train.ltx2.audio.layout import AUDIO_REMEDY, Section, State
from iclora_train.ltx2.weights.assign import load_state


class Vocoder(nn.Module):
    """Stereo log mel spectrograms (B,2,L,M) -> stereo waveforms (B,2,S) at `sample_rate`, in fp32."""

    def __init__(self, arguments: Section) -> None:
        """arguments: of LTX2VocoderWithBWE if they contain a bandwidth extension, else of LTX2Vocoder."""
        super().__init__()
        self.sample_rate: int = arguments["output_sampling_rate"]
        self.mel_bins: int = arguments["in_channels"] // 2
        self.model: Any  # diffusers is not typed
        if "bwe_in_channels" not in arguments:
            self.model = LTX2Vocoder(**arguments)
            return
        self.model = LTX2VocoderWithBWE(**arguments)
        self.model.hop_length = arguments["hop_length"]  # diffusers reads this name but does not set it
        with torch.device("cpu"):  # its filter is not in the file, so it must not be on the meta device
            ratio = self.sample_rate // arguments["input_sampling_rate"]
            self.model.resampler = UpSample1d(ratio, window_type="hann", persistent=False)

    @classmethod
    def build(cls, arguments: Section, state: State, source: object = "state_dict") -> Vocoder:
        """Build with weights under diffusers' names. source: the file, for messages. ConfigError as in `check_keys`."""
        with torch.device("meta"):
            vocoder = cls(arguments)
        state = {key: tensor.float() for key, tensor in state.items()}
        load_state(vocoder.model, state, source, "vocoder", AUDIO_REMEDY)
        return vocoder.eval().requires_grad_(False)

    def forward(self, mel: Tensor) -> Tensor:
        waveform: Tensor = self.model(mel.to(self.model.device).float())
        return waveform
