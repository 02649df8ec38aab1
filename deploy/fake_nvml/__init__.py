"""A libnvidia-ml.so.1 without a GPU, built with cc, for tests and benchmarks of the real path.

Put the folder into LD_LIBRARY_PATH before the process that loads NVML starts. Its behaviour is
told in fake_nvml.c: the file named by FAKE_NVML_CONTROL steers it while it runs.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.errors import Unavailable

SONAME: Final = "libnvidia-ml.so.1"
SOURCE: Final = Path(__file__).with_name("fake_nvml.c")


def build(folder: Path, *, old_driver: bool = False) -> Path:
    """Compile the library into a folder and return the folder.

    An old driver lacks the symbols and fields that came later. Raises Unavailable without a C
    compiler, or where the compiler refuses.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Unavailable("no C compiler: install gcc or clang, or set CC")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden",
        f"-Wl,-soname,{SONAME}", "-o", str(folder / SONAME), str(SOURCE),
    ]  # fmt: skip
    if old_driver:
        command.append("-DOLD_DRIVER")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise Unavailable(f"{compiler} does not build {SOURCE.name}: {done.stderr.strip()[:500]}")
    return folder


def environment(folder: Path, control: Path) -> dict[str, str]:
    """What a process that shall load the fake must have in its environment."""
    paths = (str(folder), os.environ.get("LD_LIBRARY_PATH", ""))
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(path for path in paths if path),
        "FAKE_NVML_CONTROL": str(control),
    }


def steer(control: Path, settings: Mapping[str, object]) -> None:
    """Write the control file in one go, so that a running process never reads half of it."""
    draft = control.with_suffix(".new")
    draft.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    draft.replace(control)
