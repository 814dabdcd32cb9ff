"""The structure of the code: one order of imports, one file per dependency, short files with docstrings.

`pytest tests/test_structure.py -k order -s` prints the order of rooms of the three packages.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room is a folder. A file may import from its own room and from the rooms before it; "" is the package's top level.
ORDER = {
    "iclora_train": (
        *("config", "core", "media", "data", "signals"),
        *("ltx2.weights", "ltx2.kernels", "ltx2.model", "ltx2.runtime", "ltx2.vae"),
        *("ltx2.audio", "ltx2.text", "ltx2"),
        *("diffusion", "adapters", "training", "composite", "generate", ""),
    ),
    "data_prep": (
        *("clips", "makers", "makers.control", "makers.degrade", "makers.edit"),
        *("checks", "captions", "engines", "", "signal"),
    ),
    "eval": (
        "statistics",
        "metrics",
        "clips",
        "scoring",
        "judging",
        "synthetic",
        "report",
        "diagnosis",
        "",
        "transfer",
        "study",
    ),
}
MODEL_MAY_IMPORT = {  # of ours, so that iclora_train/ltx2/model reads like a paper's model code
    "iclora_train.core.types",
    "iclora_train.ltx2.kernels.attention_backends",
    "iclora_train.ltx2.kernels.merge_attention",
    "iclora_train.ltx2.kernels.modulation",
}
PACKAGES = ("iclora_train", "data_prep", "eval")
FIRST = "iclora_train.commands"  # makes the path of imports safe, so any file may import it and it imports none of ours
ALLOWED = {
    "iclora_train": {"iclora_train"},
    "data_prep": {"data_prep", "iclora_train"},
    "eval": {"eval", "iclora_train"},
}
IMPORTED_IN = {  # dependency -> the only files and folders that may import it
    "peft": ("iclora_train/adapters/lora.py",),
    "diffusers": ("iclora_train/ltx2/vae/", "iclora_train/ltx2/audio/", "iclora_train/ltx2/text/connectors.py"),
    "transformers": (
        "iclora_train/ltx2/text/",
        "data_prep/captions/local_model.py",
        "iclora_train/signals/depth_network.py",
        "eval/metrics/embeddings.py",
    ),
    "wandb": ("iclora_train/core/wandb_run.py",),
    "hydra": (
        "iclora_train/config/hydra_app.py",
        "iclora_train/config/command_line.py",
        "iclora_train/config/sweep.py",
        "iclora_train/config/trust.py",
    ),
    "decord": ("iclora_train/media/shard_clip.py",),
    "av": ("iclora_train/media/",),
    "PIL": ("iclora_train/media/picture.py", "data_prep/captions/local_model.py"),
    "webdataset": ("iclora_train/data/shards.py",),
    "ai_edge_litert": ("iclora_train/signals/blazepose.py",),
    "onnxruntime": ("iclora_train/signals/rtmpose.py",),
    "OpenEXR": ("iclora_train/media/exr.py",),
    "ray": ("data_prep/engines/ray.py",),
    "vmaf_torch": ("eval/metrics/libraries.py",),
    "ssimulacra2": ("eval/metrics/libraries.py",),
    "flip_evaluator": ("eval/metrics/libraries.py",),
    "pycvvdp": ("eval/metrics/libraries.py",),
    "pydantic": ("iclora_train/core/records.py",),
}
CATCHES_ALL = "iclora_train/core/wandb_run.py"  # a logger prints its errors and never ends a run
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 40


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()[:-3].replace("/", ".").removesuffix(".__init__")


MODULES = {module_of(path): path for package in PACKAGES for path in files(package)}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    return frozenset(imports_in(path))


def imports_in(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def packages_imported(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def room_of(module: str) -> str:
    """The folder of a module inside its package, with dots: `ltx2.model`; "" at the top level."""
    return ".".join(MODULES[module].relative_to(ROOT).parts[1:-1])


def edges() -> Iterator[tuple[str, str]]:
    """(importing module, imported module) of our packages. The package names hold `__version__` and are left out."""
    for module, path in MODULES.items():
        yield from ((module, name) for name in imports(path) - {module, FIRST, *PACKAGES} if name in MODULES)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    assert files(package)
    for path in files(package):
        ours = packages_imported(path) & {*PACKAGES, "scripts", "tests"}
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


def test_the_path_of_imports_is_made_safe_by_modules_that_python_has_loaded() -> None:
    tree = tree_of(MODULES[FIRST])
    at_start = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [alias.name for node in at_start for alias in node.names] == ["os", "sys"]


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_in_one_order(package: str) -> None:
    rank = {room: number for number, room in enumerate(ORDER[package])}
    assert {room_of(m) for m in MODULES if m.split(".")[0] == package} == set(ORDER[package]), "a room without a place"
    print(f"{package}: {' < '.join(room or '(top level)' for room in ORDER[package])}")
    for importer, imported in edges():
        reexports = MODULES[importer].name == "__init__.py"  # a room's name offers what its files define
        if importer.split(".")[0] == imported.split(".")[0] == package and not reexports:
            above, below = room_of(importer), room_of(imported)
            assert rank[below] <= rank[above], f"{importer} imports {imported}, but {above} comes before {below}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for importer, imported in edges():
        graph[importer].add(imported)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_model_imports_no_fused_kernels_and_no_memory_management() -> None:
    for importer, imported in edges():
        if importer.startswith("iclora_train.ltx2.model.") and not imported.startswith("iclora_train.ltx2.model"):
            assert imported in MODEL_MAY_IMPORT, f"{importer} imports {imported}"


def test_compiler_settings_are_changed_in_the_runtime_room_only() -> None:
    compiler = ("torch._inductor", "torch._dynamo", "torch._functorch")
    for module, path in MODULES.items():
        if any(name.startswith(compiler) for name in imports(path)):
            assert module.startswith("iclora_train.ltx2.runtime."), f"{module} imports a private module of the compiler"


@pytest.mark.parametrize("dependency", IMPORTED_IN)
def test_each_dependency_is_imported_in_one_place(dependency: str) -> None:
    for path in (path for package in PACKAGES for path in files(package)):
        name = path.relative_to(ROOT).as_posix()
        if dependency in packages_imported(path):
            assert name.startswith(IMPORTED_IN[dependency]), (
                f"{name} imports {dependency}: {IMPORTED_IN[dependency]} may"
            )


@pytest.mark.parametrize("path", [p for package in PACKAGES for p in files(package)], ids=lambda p: str(p)[-40:])
def test_files_and_functions_are_short_and_described(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{path} has no docstring"
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            statements = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            assert node.end_lineno is not None
            lines = node.end_lineno - statements[0].lineno
            assert lines < MAX_FUNCTION_LINES, f"{path}: {node.name} has {lines} lines"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_unpickled_and_no_error_is_swallowed(package: str) -> None:
    for path in files(package):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                everything = caught in ("", "Exception", "BaseException") and path != ROOT / CATCHES_ALL
                assert not everything, f"{path}:{node.lineno} catches everything"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
                assert safe, f"{path}:{node.lineno} may unpickle"
