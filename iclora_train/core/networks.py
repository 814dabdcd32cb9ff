"""Networks that the user supplies, as a folder in transformers' format or as a file: loaded whole, and identified.

transformers gives random values to tensors that a folder lacks, and prints a table. Here such a folder is refused,
because everything that the network says would be wrong without anybody's notice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from iclora_train.config import ConfigError, first_line, require
from iclora_train.core.atomic_files import sha256
from iclora_train.core.fingerprint import digest

# errors that transformers raises for a folder that does not hold the network; SafetensorError: a truncated file
UNSUITABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)
SHOWN = 3  # names of missing tensors in a message


@contextmanager
def refuse_unsuitable(key: str, folder: Path, network: str, remedy: str) -> Iterator[None]:
    """ConfigError, with the setting `key`, instead of an error while `network` ("a depth network") is loaded."""
    try:
        yield
    except ConfigError:
        raise
    except torch.OutOfMemoryError:
        raise  # says nothing about the folder
    except UNSUITABLE as error:
        raise ConfigError(f"{key}={folder} is not {network} ({first_line(error)}): {remedy}") from error


def load_whole(
    from_pretrained: Callable[..., Any], key: str, folder: Path, dtype: torch.dtype, unused: Sequence[str] = ()
) -> Any:
    """The model of a folder in eval mode. Only safetensors are read, and no code from the folder runs.

    ConfigError for a folder without some of the model's tensors. unused: patterns (`re.search`) of the names of
    tensors that may be missing, because the output that is read does not depend on them.
    """
    model, loading = from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
    )
    missing = sorted(name for name in loading["missing_keys"] if not any(re.search(p, name) for p in unused))
    names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    require(
        not missing,
        f"{key}={folder} lacks tensors of a {model.config.model_type} ({names}), and random ones would take their "
        "place: copy all safetensors of the model, and check that they are of this type of network",
    )
    return model.eval()


def content_hash(path: Path) -> str:
    """Hash of a file, or of the files of a folder that decide what its network computes."""
    if path.is_file():
        return sha256(path)
    files = sorted(file for pattern in ("*.json", "*.safetensors") for file in path.glob(pattern))
    return digest([[file.name, sha256(file)] for file in files])
