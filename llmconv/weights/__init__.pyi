from .pickled import PickleStore as PickleStore
from .safetensors import SafetensorsStore as SafetensorsStore
from .store import DictStore as DictStore
from .store import WeightStore as WeightStore
