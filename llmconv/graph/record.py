"""Record what a module does on the meta device: each op that PyTorch is asked for, before it is taken apart.

The nodes are those of `torch.export`, for which PyTorch imports torch._dynamo: that alone takes longer than to record
a model of 32 layers. What cannot be recorded op by op is exported.
"""

from __future__ import annotations

import logging
import operator
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C import DispatchKey
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from llmconv.errors import PassError
from llmconv.graph.edit import drop_dead, graph_module, insert_as
from llmconv.graph.meta_kernels import spare_dynamo
from llmconv.graph.model import NAME

logger = logging.getLogger(__name__)
spare_dynamo()
_ONE_AT_A_TIME = threading.Lock()  # the modes that see ops whole, and what is set around them, are the process's own


class _NotRecordedError(Exception):
    """What was met: an op that changes what it is given, a tensor that comes from elsewhere, a result that is none."""


def record(module: nn.Module, inputs: Mapping[str, Tensor]) -> fx.GraphModule:
    """The graph of `module(**inputs)`: its placeholders are the inputs, its output is what is returned.

    What every op is named after is the path of the module that it is of, which several may have.

    Args:
        module: on the meta device.
        inputs: argument of `forward` -> a tensor of its shape and type, on the meta device.
    """
    with _ONE_AT_A_TIME, torch.no_grad(), torch.backends.cudnn.flags(enabled=False):  # norms would pass on what it is
        try:
            part = _recorded(module, inputs)
        except Exception as error:  # also what is wrong with the module, which comes up again
            logger.debug("%s is exported, since it cannot be recorded: %r", type(module).__name__, error)
            part = _exported(module, inputs)
    drop_dead(part.graph)
    return part


def _recorded(module: nn.Module, inputs: Mapping[str, Tensor]) -> fx.GraphModule:
    graph = fx.Graph()
    weights = {id(p): name for name, p in (*module.named_parameters(), *module.named_buffers())}
    recorder = _Recorder(graph, weights)
    for name, value in inputs.items():
        recorder.add_input(name, value)
    with _followed(module, recorder.paths), enable_python_dispatcher(), recorder:
        result = module(**inputs)
    graph.output(pytree.tree_map_only(Tensor, recorder.node_of, result))
    return graph_module(module, graph)


class _Recorder(SchemaCheckMode):  # type: ignore[no-untyped-call]  # its own __init_subclass__
    """Appends a node for each op; PyTorch lets three modes see ops whole, of which this is the one that needs no other.

    Results are not computed: a tensor of the form that the op gives stands for each.
    """

    def __init__(self, graph: fx.Graph, weights: Mapping[int, str]) -> None:
        super().__init__()
        self._dispatch_key = DispatchKey.PreDispatch
        self.paths: list[str] = []
        self._graph, self._weights = graph, weights
        self._nodes = WeakTensorKeyDictionary()  # weak: PyTorch gives a factory's result another identity if it is held

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether calls are to be hidden from torch._dynamo, which that imports."""
        return False

    def add_input(self, name: str, value: Tensor) -> None:
        """Append a placeholder."""
        self._add(self._graph.placeholder(name), value)

    def node_of(self, value: Tensor) -> fx.Node:
        """The node that gives a tensor; that of a weight is appended when it is first asked for."""
        node: fx.Node | None = self._nodes.get(value)  # type: ignore[no-untyped-call]
        if node is None:
            if (name := self._weights.get(id(value))) is None:
                raise _NotRecordedError(f"a tensor of shape {tuple(value.shape)}")
            node = self._add(self._graph.create_node("get_attr", name), value)
        return node

    def _add(self, node: fx.Node, value: Tensor) -> fx.Node:
        node.meta["val"] = like(value)
        self._nodes[value] = node
        return node

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            raise _NotRecordedError(func)
        given, named = pytree.tree_map_only(Tensor, self.node_of, (args, kwargs or {}))
        with no_python_dispatcher():
            return self._result(self._insert(func, given, named))

    def _insert(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Node:
        called = func.__name__.partition(".")[0]
        return insert_as(called, self._graph, func, args, self.paths[-1], kwargs)

    def _result(self, node: fx.Node) -> Any:
        """Tensors that stand for a node's."""
        value = node.meta["val"]
        if isinstance(value, list | tuple):
            each = [self._insert(operator.getitem, (node, i), {}) for i in range(len(value))]
            return type(value)(map(self._result, each))
        if not isinstance(value, Tensor):
            raise _NotRecordedError(node.target)
        result = like(value)
        self._nodes[result] = node
        return result


@contextmanager
def _followed(module: nn.Module, paths: list[str]) -> Iterator[None]:
    """Keep the path of the module whose `forward` runs at the end of a list."""

    def leave(*_: object) -> None:
        paths.pop()

    hooks = []
    for path, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda *_, path=path: paths.append(path)))
        hooks.append(part.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def like(value: Tensor) -> Tensor:
    """A tensor of its own, of a value's form."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _exported(module: nn.Module, inputs: Mapping[str, Tensor]) -> fx.GraphModule:
    """By torch's own export, with values on the meta device and paths as they are recorded."""
    gm = torch.export.export(module, (), dict(inputs), strict=False).module(check_guards=False)
    if not isinstance(gm, fx.GraphModule):
        raise PassError(f"torch.export gave a {type(gm).__name__} instead of a GraphModule")
    for node in gm.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        node.meta = {
            "val": pytree.tree_map_only(Tensor, like, node.meta.get("val")),
            NAME: re.sub(r"@\d+$", "", str(stack[-1][0])) if stack else "",
        }
    return graph_module(gm, gm.graph)
