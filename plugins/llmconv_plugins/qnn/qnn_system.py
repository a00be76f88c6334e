"""Reads context binaries through libQnnSystem with ctypes; runs in child processes, where a bad file may crash it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, Union, byref, c_char_p, c_float, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

SCALE_OFFSET, BIT_WIDTH_SCALE_OFFSET = 0, 2  # Qnn_QuantizationEncoding_t
DEFINED = 1  # Qnn_Definition_t
KINDS = {0x00: "int", 0x01: "uint", 0x02: "float", 0x03: "int", 0x04: "uint", 0x05: "bool"}  # high byte of a data type
FIXED_POINT = (0x03, 0x04)


class _ScaleOffset(Structure):
    _fields_ = [("scale", c_float), ("offset", c_int32)]


class _BitWidthScaleOffset(Structure):
    _fields_ = [("bits", c_uint32), ("scale", c_float), ("offset", c_int32)]


class _Encoding(Union):
    _fields_ = [
        ("scale_offset", _ScaleOffset),
        ("bit_width", _BitWidthScaleOffset),
        ("size", c_void_p * 4),  # of the largest member, the per-axis one with a bit width
    ]


class _QuantizeParams(Structure):
    _fields_ = [("definition", c_uint32), ("kind", c_uint32), ("encoding", _Encoding)]


class _ClientBuffer(Structure):
    _fields_ = [("data", c_void_p), ("size", c_uint32)]


class _TensorBody(Structure):
    """Version 2 of a tensor; version 1 ends before `dynamic`."""

    _fields_ = [
        ("id", c_uint32),
        ("name", c_char_p),
        ("type", c_uint32),
        ("format", c_uint32),
        ("data_type", c_uint32),
        ("quantize", _QuantizeParams),
        ("rank", c_uint32),
        ("dimensions", POINTER(c_uint32)),
        ("memory_type", c_uint32),
        ("buffer", _ClientBuffer),
        ("dynamic", POINTER(c_uint8)),
        ("sparse", c_uint32 * 3),
        ("produced", c_uint8),
    ]


class _Tensor(Structure):
    _fields_ = [("version", c_uint32), ("body", _TensorBody)]


class _GraphBody(Structure):
    """What versions 1 to 3 begin with, and the size of version 3."""

    _fields_ = [
        ("name", c_char_p),
        ("input_count", c_uint32),
        ("inputs", POINTER(_Tensor)),
        ("output_count", c_uint32),
        ("outputs", POINTER(_Tensor)),
        ("updatable_count", c_uint32),
        ("updatable", c_void_p),
        ("blob_size", c_uint32),
        ("blob", c_void_p),
        ("start_op", c_uint32),
        ("end_op", c_uint32),
    ]


class _HtpGraph(Structure):
    """What the HTP adds to a graph, version 1, as far as it is needed here."""

    _fields_ = [("version", c_uint32), ("spill_fill", c_uint64), ("vtcm", c_uint32)]


class _Graph(Structure):
    _fields_ = [("version", c_uint32), ("body", _GraphBody)]


class _Version(Structure):
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("patch", c_uint32)]


class _BinaryBodyV1(Structure):
    """Versions 1 and 2, up to the graphs."""

    _fields_ = [
        ("backend", c_uint32),
        ("build_id", c_char_p),
        ("core_api", _Version),
        ("backend_api", _Version),
        ("soc_version", c_char_p),
        ("hardware_blob_version", _Version),
        ("blob_version", _Version),
        ("hardware_blob_size", c_uint32),
        ("hardware_blob", c_void_p),
        ("blob_size", c_uint64),
        ("tensor_count", c_uint32),
        ("tensors", c_void_p),
        ("graph_count", c_uint32),
        ("graphs", POINTER(_Graph)),
    ]


class _BinaryBodyV3(Structure):
    _fields_ = [
        ("backend", c_uint32),
        ("build_id", c_char_p),
        ("core_api", _Version),
        ("backend_api", _Version),
        ("soc_version", c_char_p),
        ("blob_version", _Version),
        ("blob_size", c_uint64),
        ("tensor_count", c_uint32),
        ("tensors", c_void_p),
        ("graph_count", c_uint32),
        ("graphs", POINTER(_Graph)),
        ("platform", c_void_p),
        ("metadata_size", c_uint32),
        ("metadata", c_void_p),
        ("soc_model", c_uint32),
    ]


class _BinaryBody(Union):
    _fields_ = [("v1", _BinaryBodyV1), ("v3", _BinaryBodyV3)]


class _Binary(Structure):
    _fields_ = [("version", c_uint32), ("body", _BinaryBody)]


class _Interface(Structure):
    """A provider of system API 1; its function table goes on with functions that are not needed here."""

    _fields_ = [
        ("backend", c_uint32),
        ("provider", c_char_p),
        ("api", _Version),
        ("create", ctypes.CFUNCTYPE(c_uint64, POINTER(c_void_p))),
        (
            "get_binary_info",
            ctypes.CFUNCTYPE(c_uint64, c_void_p, c_void_p, c_uint64, POINTER(POINTER(_Binary)), POINTER(c_uint64)),
        ),
    ]


def read(file: Path, library: Path) -> dict[str, Any]:
    """What a context binary says about itself, as plain data in the form of `context_binary.BinaryInfo`.

    Raises:
        ValueError: libQnnSystem refuses the file, or answers in a version that is not known here.
    """
    interface = _interface(library)
    context = c_void_p()
    _check(interface.create(byref(context)), "create a system context")
    content = file.read_bytes()
    pointer, size = POINTER(_Binary)(), c_uint64()
    buffer = ctypes.cast(c_char_p(content), c_void_p)
    code = interface.get_binary_info(context, buffer, len(content), byref(pointer), byref(size))
    _check(code, "read it as a context binary")
    binary = pointer.contents  # owned by `context`, which is left to the end of the process
    if binary.version not in (1, 2, 3):
        raise ValueError(f"unknown version {binary.version} of its binary info")
    body = binary.body.v3 if binary.version == 3 else binary.body.v1
    return {
        "build_id": _text(body.build_id),
        "soc_model": int(body.soc_model) if binary.version == 3 else None,
        "graphs": [_graph(body.graphs[i]) for i in range(body.graph_count)],
    }


def _interface(library: Path) -> _Interface:
    get_providers: Callable[..., int] = ctypes.CDLL(str(library)).QnnSystemInterface_getProviders
    providers, count = POINTER(POINTER(_Interface))(), c_uint32()
    _check(get_providers(byref(providers), byref(count)), "list its providers")
    for i in range(count.value):
        if providers[i].contents.api.major == 1:
            found: _Interface = providers[i].contents
            return found
    raise ValueError("libQnnSystem offers no provider of system API 1")


def _check(code: int, action: str) -> None:
    if code:
        raise ValueError(f"libQnnSystem cannot {action} (error {code & 0xFFFFFFFF})")


def _graph(graph: _Graph) -> dict[str, Any]:
    if graph.version not in (1, 2, 3):
        raise ValueError(f"unknown version {graph.version} of a graph's info")
    body = graph.body
    return {
        "name": _text(body.name),
        "inputs": [_tensor(body.inputs[i]) for i in range(body.input_count)],
        "outputs": [_tensor(body.outputs[i]) for i in range(body.output_count)],
        "spill_fill": _spill_fill(graph),
    }


def _spill_fill(graph: _Graph) -> int | None:
    body = graph.body
    if graph.version != 3 or not body.blob or body.blob_size < ctypes.sizeof(_HtpGraph):
        return None
    found = ctypes.cast(body.blob, POINTER(_HtpGraph)).contents
    return int(found.spill_fill) if found.version == 1 else None


def _tensor(tensor: _Tensor) -> dict[str, Any]:
    if tensor.version not in (1, 2):
        raise ValueError(f"unknown version {tensor.version} of a tensor")
    body = tensor.body
    kind, digits = body.data_type >> 8, body.data_type & 0xFF
    width = int(f"{digits:x}")  # 0x416 is fixed point of 16 bits: the low byte is decimal
    scale, offset, bits = None, None, width
    if body.quantize.definition == DEFINED and kind in FIXED_POINT:
        encoding = body.quantize.encoding
        if body.quantize.kind == SCALE_OFFSET:
            scale, offset = encoding.scale_offset.scale, encoding.scale_offset.offset
        elif body.quantize.kind == BIT_WIDTH_SCALE_OFFSET:
            scale, offset, bits = encoding.bit_width.scale, encoding.bit_width.offset, encoding.bit_width.bits
    return {
        "name": _text(body.name),
        "shape": [body.dimensions[i] for i in range(body.rank)],
        "dtype": "bool" if kind == 0x05 else f"{KINDS.get(kind, 'unknown')}{width}",
        "scale": scale,
        "offset": offset,
        "bits": bits,
    }


def _text(value: bytes | None) -> str:
    return (value or b"").decode()
