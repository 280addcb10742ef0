"""The finished stages of a run, kept on disk."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dpldm.data.memory import lacks_memory
from dpldm.records.files import one_line, write_atomically
from dpldm.records.schema import NAME, RecordError, check_json, shown_value


def _tensor_digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two sharing memory, as safetensors asks for."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return stored


class StageFolder:
    """The finished stages of one run, so that an interrupted run goes on after the last of them.

    One safetensors file per stage, with the facts as JSON in its header and a SHA-256 over both. Use one folder per
    run, for instance one that is called as the run's record.

    Args:
        path: the folder; made by the first `save`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def file(self, stage: str) -> Path:
        """Where a stage is kept. Raises RecordError for a name that can't be a file's."""
        if not NAME[1](stage):
            raise RecordError(f"stage: expected {NAME[0]}, got {shown_value(stage)}; choose another name")
        return self.path / f"{stage}.safetensors"

    def has(self, stage: str) -> bool:
        """Whether the stage was finished; `load` says whether its file is whole."""
        return self.file(stage).is_file()

    def save(self, stage: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Keep a finished stage, whole or not at all.

        Args:
            stage: its name.
            tensors: any shapes and dtypes; they come back on the CPU.
            facts: whatever else the next stage needs, as it can be written in JSON.

        Raises:
            RecordError: `facts` can't be written as strict JSON.
            OSError: the folder can't be written.
        """
        path = self.file(stage)
        check_json("facts", facts)
        text = json.dumps(facts, allow_nan=False)
        stored = _storable(tensors)
        header = {"facts": text, "sha256": _tensor_digest(stored, text)}

        def write_to(temporary: Path) -> None:
            try:
                safetensors.torch.save_file(stored, temporary, metadata=header)
            except safetensors.SafetensorError as error:
                raise OSError(one_line(error)) from error

        return write_atomically(path, write_to)

    def load(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors (on the CPU) and facts of a finished stage. Executes no code.

        Raises:
            RecordError: the stage is missing or its file damaged; says which file to delete.
        """
        path = self.file(stage)
        if not path.is_file():
            raise RecordError(f"{path}: expected the finished stage '{stage}', found no file; run that stage first")
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                header = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            facts = json.loads(header["facts"])
            whole = header["sha256"] == _tensor_digest(tensors, header["facts"])
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError, RecursionError) as error:
            if lacks_memory(error):
                raise
            raise RecordError(
                f"{path}: expected the finished stage '{stage}', got a damaged file ({one_line(error)}); "
                "delete it and run again"
            ) from None
        if not whole:
            raise RecordError(
                f"{path}: expected the finished stage '{stage}', got another checksum; delete it and run again"
            )
        return tensors, facts
