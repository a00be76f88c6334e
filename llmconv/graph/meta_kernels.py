"""Ops on the meta device without torch._dynamo, which takes longer to import than a model takes to trace."""

from __future__ import annotations

from types import CellType, FunctionType
from typing import Any

from torch import _compile
from torch._decomp import global_decomposition_table


def spare_dynamo() -> None:
    """Keep PyTorch's kernels for the meta device from importing torch._dynamo.

    Each asks it for a form of itself that torch.compile does not look into, and remembers the answer as an attribute.
    Nothing is compiled here, so that the kernel itself will do. Where PyTorch remembers otherwise, it is imported.
    """
    todo: list[Any] = [kernel for table in global_decomposition_table.values() for kernel in table.values()]
    seen = set()
    while todo:
        function = todo.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        enclosed = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
        todo += enclosed
        if function.__code__.co_filename == _compile.__file__:
            for kernel in enclosed:
                if isinstance(kernel, FunctionType):
                    vars(kernel)["__dynamo_disable"] = kernel
