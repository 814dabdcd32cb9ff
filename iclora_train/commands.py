"""Start the commands with the packages of this project, whatever the working folder and PYTHONPATH hold.

Console scripts start here, and so do `data_prep` and `eval` when training needs them. `eval` and `data_prep` are common
names: `python -m eval` in a folder with a file eval.py runs that file. A file random.py there would replace Python's
module. Only modules that Python has loaded at this point are imported, because the path is not safe before.
"""

import os
import sys

FOLDER = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # of the three packages
PACKAGES = ("iclora_train", "data_prep", "eval")


def protect_imports() -> None:
    """Take the working folder from the path of imports, here and in processes that this one starts.

    A folder of PYTHONPATH stays, behind all others if it is the working folder or holds another package of the name
    of one of ours.
    """
    if not sys.flags.safe_path and _is_working_folder(sys.path[0]) and os.path.realpath(sys.path[0]) != FOLDER:
        del sys.path[0]  # `python -m` has put it there
    if FOLDER not in map(os.path.realpath, sys.path):
        sys.path.insert(0, FOLDER)
    sys.path.sort(key=_shadows)
    os.environ["PYTHONSAFEPATH"] = "1"
    if os.path.basename(FOLDER) not in ("site-packages", "dist-packages"):  # a checkout
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != FOLDER]
        os.environ["PYTHONPATH"] = os.pathsep.join([FOLDER, *others])


def _is_working_folder(path: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(os.curdir)


def _shadows(path: str) -> int:
    """0 for a folder that hides none of our packages, 1 for one that does, 2 for the working folder."""
    if os.path.realpath(path) == FOLDER:
        return 0
    names = (name + suffix for name in PACKAGES for suffix in ("", ".py"))
    return 2 if _is_working_folder(path) else int(any(os.path.exists(os.path.join(path, name)) for name in names))


def run_command(module: str) -> None:
    """Run `main` of a module of ours with the arguments of this process."""
    protect_imports()
    import importlib  # noqa: PLC0415 (after the path is safe)

    importlib.import_module(module).main()


def end_with_parent(pipe: int) -> None:
    """Send SIGTERM to this process when the parent has ended, however it ended: that closes the other end of `pipe`."""
    import signal  # noqa: PLC0415 (after the path is safe)
    import threading  # noqa: PLC0415

    def watch() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    os.set_inheritable(pipe, False)
    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def prepare() -> None:
    """Console script `iclora-prep`."""
    run_command("data_prep.__main__")


def train() -> None:
    """Console script `iclora-train`."""
    run_command("iclora_train.__main__")


def evaluate() -> None:
    """Console script `iclora-eval`."""
    run_command("eval.__main__")


def compare() -> None:
    """Console script `iclora-compare`."""
    run_command("eval.compare")


def handout() -> None:
    """Console script `iclora-handout`."""
    run_command("eval.handout")


def study() -> None:
    """Console script `iclora-study`."""
    run_command("eval.study.__main__")


def diagnose() -> None:
    """Console script `iclora-diagnose`."""
    run_command("eval.diagnose")


def transfer() -> None:
    """Console script `iclora-transfer`."""
    run_command("eval.transfer.__main__")


def generate() -> None:
    """Console script `iclora-generate`."""
    run_command("iclora_train.generate.__main__")


def make_signal() -> None:
    """Console script `iclora-signal`, and `python -m iclora_train.signal`."""
    run_command("data_prep.signal.__main__")


def composite() -> None:
    """Console script `iclora-composite`."""
    run_command("iclora_train.composite.__main__")


def adapters() -> None:
    """Console script `iclora-adapters`."""
    run_command("iclora_train.adapters.__main__")


if __name__ == "__main__":  # started by `run_module`: <package> <pipe of the parent> <overrides>
    _package, _pipe = sys.argv[1:3]
    del sys.argv[1:3]
    protect_imports()
    end_with_parent(int(_pipe))
    run_command(f"{_package}.__main__")
