from .lower import Lowering as Lowering
from .lower import LoweringTable as LoweringTable
from .lower_part import lower_part as lower_part
from .onnx_pass import OnnxPass as OnnxPass
from .write import write_onnx as write_onnx
