"""What a run was made on: versions, machine, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "dpldm", "torch", "torchvision", "opacus", "dp-accounting", "numpy", "scipy", "safetensors",
)  # fmt: skip


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    named = _output_of("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else None
    return named or platform.processor() or platform.machine() or "unknown processor"


def device_name(device: str = "cpu") -> str:
    """A torch device in words: the processor's model and the cores this process may use, or the GPU's name."""
    kind = torch.device(device).type
    if kind == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return f"{kind}: {_processor()}, {len(allowed)} {'core' if len(allowed) == 1 else 'cores'}"


def _commit(root: Path) -> str | None:
    """The commit that `root` is a checkout of, with `-dirty` where the library differs from it; None outside of git."""
    git = ("git", "-C", str(root))
    top, commit = _output_of(*git, "rev-parse", "--show-toplevel"), _output_of(*git, "rev-parse", "--verify", "HEAD")
    # Installed into an environment inside somebody else's repository: that commit says nothing about this code.
    if not top or not commit or Path(top).resolve() != root.resolve():
        return None
    changed = _output_of(*git, "status", "--porcelain", "--", "dpldm", "pyproject.toml", "requirements.lock")
    return f"{commit}-dirty" if changed or changed is None else commit


def environment_facts(device: str = "cpu") -> dict[str, Any]:
    """The part of a record that says where it was made: `versions`, `device` and `commit`.

    Args:
        device: the torch device the run used.

    Returns:
        `versions`: package names and versions; `device`: see `device_name`; `commit`: the git commit of this library,
        with `-dirty` where its files differ from it (records and notebooks do not count), or `dpldm <version>` where
        the library is not a git checkout.
    """
    versions = _versions()
    commit = _commit(Path(__file__).resolve().parent.parent.parent)
    return {
        "versions": versions,
        "device": device_name(device),
        "commit": commit or f"dpldm {versions.get('dpldm', 'of unknown version')}",
    }
