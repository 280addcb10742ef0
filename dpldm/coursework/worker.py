"""Inside the sandbox: runs a submission's cells and calls its functions, one JSON line in, one JSON line out.

A program and no module: it starts before anything of the submission and shares its process with it, so nothing that it
says is trusted. The grader judges values and nothing else; what is right never comes in here.
"""

import ast
import io
import json
import os
import sys
import traceback
from typing import Any

Namespace = dict[str, Any]
DEEPEST = 12  # levels of lists in an answer: arrays have a few


def to_json(value: Any, depth: int = 0) -> Any:
    """Numbers, texts, lists and dictionaries as they are; arrays and tensors as lists; anything else is refused."""
    if depth > DEEPEST:
        raise TypeError(f"lists nested more than {DEEPEST} deep")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): to_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, depth + 1) for item in value]
    if hasattr(value, "detach"):  # a tensor, with or without a gradient
        value = value.detach().cpu()
    if "complex" in str(getattr(value, "dtype", "")):
        raise TypeError("complex numbers, expected real ones")
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}, expected numbers, an array, a tensor, a list or a dictionary")


def from_json(value: Any, namespace: Namespace, asked: list[Any]) -> Any:
    """An argument: {"array": …}, {"tensor": …}, {"normal": seed or null}, {"name": of an object}, or plain JSON."""
    if isinstance(value, list):
        return [from_json(item, namespace, asked) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        import numpy

        return numpy.array(value["array"], dtype=value.get("dtype"))
    if "tensor" in value:
        import torch

        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    if "normal" in value:
        return normal_source(value["normal"], value.get("tensors", False), asked)
    if "name" in value:
        return namespace[value["name"]]
    return {key: from_json(item, namespace, asked) for key, item in value.items()}


def normal_source(seed: int | None, tensors: bool, asked: list[Any]) -> Any:
    """The `normal(shape, std)` that a function is given; notes what it is asked for. Seed None: no noise."""
    import numpy

    generator = numpy.random.default_rng(seed)

    def normal(shape: Any, std: Any = 1.0) -> Any:
        sizes = tuple(int(size) for size in numpy.atleast_1d(numpy.asarray(shape, dtype=int)))
        asked.append({"shape": list(sizes), "std": float(std)})
        drawn = generator.standard_normal(sizes) * (0.0 if seed is None else float(std))
        if not tensors:
            return drawn
        import torch

        return torch.as_tensor(drawn, dtype=torch.float32)

    return normal


def without_magics(source: str) -> str:
    """IPython's own lines (%time, !ls, a trailing ?) become calls of `get_ipython`, which does nothing here."""
    try:
        ast.parse(source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        return TransformerManager().transform_cell(source)
    return source


class NoShell:
    """Stands for the shell of a notebook: every magic and every command does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def answer(command: dict[str, Any], namespace: Namespace) -> str:
    """Do one command, and reply in JSON; an error is a reply too, and so is a value that JSON can't hold."""
    asked: list[Any] = []
    ticket = {"ticket": command.get("ticket")}
    try:
        return json.dumps(ticket | done(command, namespace, asked))
    except BaseException as error:  # a notebook may also raise SystemExit or KeyboardInterrupt
        said = "".join(traceback.format_exception_only(error)).strip()
        return json.dumps(ticket | {"error": said[-500:], "asked": asked[:100]})


def done(command: dict[str, Any], namespace: Namespace, asked: list[Any]) -> dict[str, Any]:
    """Do one command: `run` a cell's source, `set` names, `call` a function or tell a `value`."""
    if "run" in command:
        exec(compile(without_magics(command["run"]), command["where"], "exec"), namespace)
        return {}
    if "set" in command:
        namespace.update(command["set"])
        return {}
    name = command.get("call") or command["value"]
    if name not in namespace:
        return {"error": f"there is no {name} in the notebook"}
    value = namespace[name]
    if "call" in command:
        value = value(**{key: from_json(item, namespace, asked) for key, item in command["arguments"].items()})
    return {"value": to_json(value), "asked": asked}


def main() -> None:
    """Answer commands, one JSON object a line, until the pipe is closed."""
    commands, replies = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    sys.stdin = io.StringIO()  # input() ends at once
    namespace: Namespace = {"__name__": "__main__", "get_ipython": NoShell, "display": lambda *things: None}
    for line in commands:
        replies.write(answer(json.loads(line), namespace) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
