from pathlib import Path

import llmconv_more_bits

from llmconv import Recipe, Registry
from llmconv.planning import widths_of_weights
