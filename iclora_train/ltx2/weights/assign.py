"""Put tensors into a module that was built on the meta device, after one check of their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from iclora_train.config import ConfigError
from iclora_train.ltx2.weights.safetensors_header import LazyTensors

Shapes = Mapping[str, tuple[int, ...]]
REMEDY = "the file is incomplete, changed, or of another version: fetch it again"
_SHOWN = 3  # keys in a message


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of each tensor; lazy tensors are not read."""
    if isinstance(tensors, LazyTensors):
        return tensors.shapes
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def mismatches(stored: Shapes, expected: Shapes) -> list[str]:
    """The keys that are missing, unknown or of a wrong shape, one message each."""
    wrong = [f"missing {name}" for name in expected if name not in stored]
    wrong += [f"unknown {name}" for name in stored if name not in expected]
    both = sorted(expected.keys() & stored.keys())
    return wrong + [
        f"{name} has shape {stored[name]} instead of {expected[name]}"
        for name in both
        if stored[name] != expected[name]
    ]


def check_keys(source: object, component: str, stored: Shapes, expected: Shapes, remedy: str = REMEDY) -> None:
    """ConfigError unless the stored names and shapes are exactly the expected ones.

    The message names the file (`source`), the component, the number of wrong keys, the first few, and the remedy.
    """
    wrong = mismatches(stored, expected)
    if wrong:
        keys = ", ".join(wrong[:_SHOWN]) + (", ..." if len(wrong) > _SHOWN else "")
        raise ConfigError(f"{source}: the {component} does not fit its config ({len(wrong)} keys: {keys}); {remedy}")


def load_state(
    module: nn.Module, state: Mapping[str, Tensor], source: object, component: str, remedy: str = REMEDY
) -> None:
    """Give a module its tensors without a copy. ConfigError as in `check_keys`."""
    check_keys(source, component, shapes_of(state), shapes_of(module.state_dict()), remedy)
    module.load_state_dict(state, assign=True)


def assign_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer `name` of a module on the meta device by a frozen tensor."""
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    is_buffer = leaf in dict(owner.named_buffers(recurse=False))
    setattr(owner, leaf, tensor if is_buffer else nn.Parameter(tensor, requires_grad=False))
