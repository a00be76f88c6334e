from .source import ModelConfig as ModelConfig
from .source import Source as Source
