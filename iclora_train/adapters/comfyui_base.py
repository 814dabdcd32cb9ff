"""Nodes of a ComfyUI workflow, the links between them, and those that load a base."""

from __future__ import annotations

from dataclasses import dataclass

from iclora_train.adapters.comfyui_nodes import Value
from iclora_train.ltx2.weights.versions import ComfyUIFiles


@dataclass(frozen=True)
class Link:
    """An output of another node, by the node's title and the output's name."""

    node: str
    output: str


@dataclass(frozen=True)
class WorkflowNode:
    """A node: its class, and values or links for some of its inputs. All other inputs have their default."""

    class_type: str
    inputs: dict[str, Value | Link]


@dataclass(frozen=True)
class BaseNodes:
    """The nodes that load a base, and the outputs of its two VAEs."""

    nodes: dict[str, WorkflowNode]
    video_vae: Link
    audio_vae: Link


def load_base(files: ComfyUIFiles) -> BaseNodes:
    """Nodes for a base in one file (2.0, 2.3), or in one file per component (2.5)."""
    if files.vae is None or files.audio_vae is None:
        nodes = {
            "base": WorkflowNode("CheckpointLoaderSimple", {"ckpt_name": files.model}),
            "text encoder": WorkflowNode(
                "LTXAVTextEncoderLoader", {"text_encoder": files.text_encoder, "ckpt_name": files.model}
            ),
            "audio vae": WorkflowNode("LTXVAudioVAELoader", {"ckpt_name": files.model}),
        }
        return BaseNodes(nodes, Link("base", "VAE"), Link("audio vae", "Audio VAE"))
    nodes = {
        "base": WorkflowNode("UNETLoader", {"unet_name": files.model}),
        "text encoder": WorkflowNode("CLIPLoader", {"clip_name": files.text_encoder, "type": "ltxv"}),
        "video vae": WorkflowNode("VAELoader", {"vae_name": files.vae}),
        "audio vae": WorkflowNode("VAELoader", {"vae_name": files.audio_vae}),
    }
    return BaseNodes(nodes, Link("video vae", "VAE"), Link("audio vae", "VAE"))
