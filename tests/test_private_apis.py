"""Private names of dependencies that the code relies on: each exists in the installed version.

A version of a dependency that drops a name fails here, with the name and the version, and not in a training run.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lightning import Trainer

ROOT = Path(__file__).parent.parent
PACKAGES = ("iclora_train", "data_prep", "eval")
TORCH_BOUND = "torch>=2.11,<2.14"  # 2.11 was tested on GPUs, 2.13 on CPUs

USED = {  # distribution -> "module:attribute path"
    "torch": [
        "torch.ops.aten:_scaled_dot_product_cudnn_attention.default",
        "torch.ops.aten:_scaled_dot_product_cudnn_attention_backward.default",
        "torch.ops.aten:_scaled_dot_product_efficient_attention.default",
        "torch.ops.aten:_scaled_dot_product_efficient_attention_backward.default",
        "torch.ops.aten:_scaled_dot_product_flash_attention.default",
        "torch.ops.aten:_scaled_dot_product_flash_attention_for_cpu.default",
        "torch.ops.aten:_scaled_dot_product_flash_attention_for_cpu_backward.default",
        "torch:_scaled_mm",
        "torch:_foreach_copy_",
        "torch:_foreach_lerp_",
        "torch:UntypedStorage._cdata",
        "torch.cpu:_is_amx_tile_supported",
        "torch.cpu:_is_avx512_bf16_supported",
        "torch._ops:OpOverload",
        "torch._dynamo:reset",
        "torch._dynamo.config:recompile_limit",
        "torch._dynamo.config:optimize_ddp",
        "torch._functorch.config:activation_memory_budget",
        "torch._inductor.config:combo_kernels",
        "torch._inductor.config:joint_custom_pre_pass",
        "torch._inductor.config:realize_opcount_threshold",
        "torch._inductor.config:realize_reads_threshold",
        "torch._inductor.custom_graph_pass:CustomGraphPass",
        "torch._inductor.custom_graph_pass:get_hash_for_files",
        "torch._inductor.scheduler:BaseSchedulerNode",
        "torch._inductor.scheduler:FusedSchedulerNode",
        "torch._dynamo.utils:counters",
        "torch._inductor.scheduler:Scheduler",
        "torch._inductor.scheduler:SchedulerNode",
        "torch._inductor.scheduler:ForeachKernelSchedulerNode.group_algorithm_for_combo_kernels",
        "torch._inductor.scheduler:ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels",
    ],
    "peft": ["peft:LoraConfig._register_custom_module"],
    "diffusers": [  # public names of modules that diffusers does not document
        "diffusers.models.autoencoders.ltx2_diffusion_decoder:LTX2VideoVaeNeighborhoodAttention",
        "diffusers.models.autoencoders.ltx2_diffusion_decoder:LTX2VideoDiffusionDecoder3d.forward_stages_1_to_3",
        "diffusers.models.autoencoders.ltx2_diffusion_decoder:LTX2VideoDiffusionDecoder3d.forward_stage_4",
        "diffusers.models.autoencoders.ltx2_diffusion_decoder:LTX2VideoDiffusionDecoder3d.denoise",
        "diffusers.pipelines.ltx2.connectors:LTX2ConnectorTransformer1d",
        "diffusers.pipelines.ltx2.connectors:per_layer_masked_mean_norm",
        "diffusers.pipelines.ltx2.connectors:per_token_rms_norm",
        "diffusers.pipelines.ltx2.latent_upsampler:LTX2LatentUpsamplerModel",
        "diffusers.pipelines.ltx2.vocoder:LTX2Vocoder",
        "diffusers.pipelines.ltx2.vocoder:LTX2VocoderWithBWE",
        "diffusers.pipelines.ltx2.vocoder:UpSample1d",
    ],
    "lightning": [
        "lightning.pytorch.strategies.ddp:DDPStrategy._setup_model",
        "lightning.fabric.plugins.environments.cluster_environment:ClusterEnvironment",
        "lightning.fabric.plugins.environments.slurm:SLURMEnvironment",
        "lightning.fabric.plugins.environments.lsf:LSFEnvironment",
        "lightning.fabric.plugins.environments.mpi:MPIEnvironment",
        "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop._broadcast_sigterm_tensor",
        "lightning.pytorch.trainer.connectors.signal_connector:_SignalConnector.register_signal_handlers",
    ],
    "onnxruntime": ["onnxruntime.capi:onnxruntime_pybind11_state"],  # optional: wholebody poses
    "flash-attn-4": ["flash_attn.cute.interface:_flash_attn_fwd", "flash_attn.cute.interface:_flash_attn_bwd"],
}


@pytest.mark.parametrize(("distribution", "name"), [(dist, name) for dist, names in USED.items() for name in names])
def test_a_private_name_exists(distribution: str, name: str) -> None:
    module, _, path = name.partition(":")
    if distribution in ("onnxruntime", "flash-attn-4"):
        pytest.importorskip(module.split(".")[0], reason=f"{distribution} is not installed")
    installed = version(distribution)
    try:
        value = importlib.import_module(module) if not module.startswith("torch.ops") else torch.ops.aten
        for part in path.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{distribution} {installed} has no {name}, which this code uses: {error}")


def test_ddp_reads_the_list_of_frozen_parameters() -> None:
    installed = version("torch")
    source = inspect.getsource(torch.nn.parallel.DistributedDataParallel)
    name = "_ddp_params_and_buffers_to_ignore"
    assert name in source, f"torch {installed}: DistributedDataParallel does not read {name}"


TRAINER_ATTRIBUTE = "_signal_connector"


def test_a_trainer_has_the_connector_whose_signal_handlers_are_left_out() -> None:
    source = inspect.getsource(Trainer)
    for text in (f"self.{TRAINER_ATTRIBUTE} = ", f"self.{TRAINER_ATTRIBUTE}.register_signal_handlers()"):
        assert text in source, f"lightning {version('lightning')}: Trainer does not contain {text}"


def test_the_fp8_product_takes_the_arguments_that_are_passed() -> None:
    arguments = {argument.name for argument in torch.ops.aten._scaled_mm.default._schema.arguments}
    assert {"out_dtype", "use_fast_accum"} <= arguments, f"torch {version('torch')}: _scaled_mm takes {arguments}"


def test_torch_has_the_upper_bound_that_was_tested() -> None:
    assert f'"{TORCH_BOUND}"' in (ROOT / "pyproject.toml").read_text()
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    assert (2, 11) <= (major, minor) < (2, 14), f"torch {torch.__version__} is outside of {TORCH_BOUND}"


DOCUMENTED = ("_asdict", "_fields", "_replace", "_exit")  # of named tuples and of os


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def private_names_used() -> Iterator[tuple[str, str]]:
    """(file, name) for each private name of a dependency: attributes that our code does not define, and imports."""
    trees = {path: ast.parse(path.read_text()) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    ours = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    ours |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    ours |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for path, node in nodes:
        file = path.relative_to(ROOT).as_posix()
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in ours:
            yield file, node.attr
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in PACKAGES:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((file, name) for name in names if any(map(private, name.split("."))))


def test_every_private_name_is_listed() -> None:
    listed = {name.replace(":", ".") for names in USED.values() for name in names}
    parts = {part for name in listed for part in name.split(".")} | {TRAINER_ATTRIBUTE}
    for file, name in private_names_used():
        known = name in parts or any(entry.startswith(name) for entry in listed)
        assert known, f"{file} uses {name}, a private name of a dependency that {Path(__file__).name} does not test"
