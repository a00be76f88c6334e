from .noise import sqnr as sqnr
from .noise import squares as squares
from .value import Encoding as Encoding
from .value import Encodings as Encodings
from .value import WeightEncoding as WeightEncoding
