from .decoder import MASKED as MASKED
from .decoder import Arrays as Arrays
from .decoder import Decoder as Decoder
from .decoder import Runner as Runner
from .decoder import reach as reach
from .dialog import Dialog as Dialog
from .torch_runner import TorchRunner as TorchRunner
