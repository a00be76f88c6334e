from .lower import Lowering as Lowering
from .lower import LoweringTable as LoweringTable
from .write import write_onnx as write_onnx
