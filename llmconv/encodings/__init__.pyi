from .noise import Noise as Noise
from .value import Encoding as Encoding
from .value import Encodings as Encodings
from .value import WeightEncoding as WeightEncoding
