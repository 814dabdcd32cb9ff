"""Put tensors into a module that was built on the meta device, and check that none is missing or unknown."""

from __future__ import annotations

from torch import Tensor, nn

from iclora_train.config import ConfigError
from iclora_train.ltx2.weights.safetensors_header import Component, mismatches


def load_state(module: nn.Module, state: State, what: str) -> None:
    """Give a module its tensors, uncopied. ConfigError counts and names missing, odd and misshapen keys."""
    own = module.state_dict()
    wrong = [f"{key} is missing" for key in own.keys() - state.keys()]
    wrong += [f"{key} is unknown" for key in state.keys() - own.keys()]
    for key in own.keys() & state.keys():
        if own[key].shape != state[key].shape:
            wrong.append(f"{key} has shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}")
    if wrong:
        shown = "; ".join(sorted(wrong)[:3]) + (", ..." if len(wrong) > 3 else "")
        raise ConfigError(
            f"the {what} does not fit its config ({len(wrong)} keys: {shown}); the file is incomplete or of another "
            "version: fetch it again, or give model.vae the VAE that belongs to model.checkpoint"
        )
    module.load_state_dict(state, assign=True)


State = dict[str, Tensor]


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a frozen tensor where the module, built on the meta device, has a parameter or a buffer of that name."""
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    setattr(owner, leaf, tensor if leaf in owner._buffers else nn.Parameter(tensor, requires_grad=False))


def check_keys(part: Component, shapes: dict[str, tuple[int, ...]]) -> None:
    """ConfigError unless the part holds exactly the tensors of these names and shapes."""
    wrong = mismatches({name: at.shape for name, at in part.stored.items()}, shapes)
    wrong += [f"unknown {name}" for name in part.orphan_scales]
    if wrong:
        where = ", ".join(str(file) for file in part.files[:3]) or str(part.source)
        raise ConfigError(
            f"{where}: the {part.name} does not fit its config ({len(wrong)} keys: {', '.join(wrong[:4])}"
            f"{', ...' if len(wrong) > 4 else ''}); the checkpoint is incomplete, changed, or of an unknown version: "
            "fetch it again"
        )
