"""Tensors as the result of a step; apart from `steps`, so that who looks at records does not wait for torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from safetensors.torch import load_file, save_file
from torch import Tensor

from llmconv.work.steps import Steps


def tensors_once(steps: Steps, name: str, key: str, work: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name, which a piece of work makes unless it is done."""
    file = steps.scratch(f"{name}.safetensors")

    def save() -> bool:
        save_file({tensor: value.contiguous() for tensor, value in work().items()}, file)
        return True

    steps.once(name, key, [file], save)
    return load_file(file)
