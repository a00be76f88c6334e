from .model_config import ModelConfig as ModelConfig
from .source import Source as Source
