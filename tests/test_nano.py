"""nano is the base that docs/nano.md describes: a small model like LTX-2.3 whose VAE reconstructs real clips."""

from pathlib import Path

import numpy as np
import pytest
import torch

import data_prep
from iclora_train.ltx2.base_model import EMBEDDED, BaseModel
from iclora_train.media.clip import read_clip
from scripts.nano.colours import colour_words
from tests.command import read_csv

SAMPLES = Path(data_prep.__file__).parent / "samples"


@pytest.fixture(scope="module")
def nano() -> BaseModel:
    return BaseModel.open("nano")


def test_files_are_small_enough_to_ship() -> None:
    files = list(EMBEDDED["nano"].glob("*.safetensors"))
    assert files
    assert max(file.stat().st_size for file in files) <= 16 << 20


def test_nano_has_the_architecture_of_2_3(nano: BaseModel) -> None:
    config = nano.transformer().config
    assert (nano.family, nano.version) == ("nano", "2.3")
    assert config.apply_gated_attention
    assert config.rows == 9
    assert (nano.geometry.spatial, nano.geometry.temporal) == (8, 4)


def test_captions_of_any_length_give_the_same_number_of_tokens(nano: BaseModel) -> None:
    features = nano.text().encode(["", "a dog", "word " * 40])
    assert features.shape == (3, 16, nano.transformer().config.cross_attention_dim)
    assert not torch.allclose(features[0], features[1])


def test_the_vae_reconstructs_real_clips(nano: BaseModel) -> None:
    files = [row["file"] for row in read_csv(SAMPLES / "clips.csv") if row["split"] == "val"]
    crops = [np.stack(list(read_clip(SAMPLES / file)))[:9, 40:104, 40:104] for file in files]
    video = torch.from_numpy(np.stack(crops)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    vae = nano.vae()
    with torch.no_grad():
        error = (vae.decode(vae.encode(video)) - video).square().mean((1, 2, 3, 4))
    assert float((10 * torch.log10(4 / error)).mean()) > 31


def test_captions_name_the_largest_areas_of_colour() -> None:
    def clip(*parts: tuple[float, float, float]) -> torch.Tensor:
        columns = [torch.tensor(part).view(3, 1, 1, 1).expand(3, 9, 64, 64 // len(parts)) for part in parts]
        return torch.cat(columns, dim=-1) * 2 - 1

    green, red, grey = (0.3, 0.5, 0.2), (0.7, 0.15, 0.15), (0.5, 0.5, 0.5)
    video = torch.stack([clip(green, green, green, red), clip(grey), clip(red, grey)])
    assert [set(words) for words in colour_words(video)] == [{"green", "red"}, {"grey"}, {"red", "grey"}]
    assert colour_words(video)[0] == ["green", "red"]
