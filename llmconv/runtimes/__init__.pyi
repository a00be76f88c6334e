from .parts_runner import PartsRunner as PartsRunner
from .runtime import GraphRuntime as GraphRuntime
from .runtime import Runtime as Runtime
from .runtime import long_text as long_text
from .runtime import rope_table as rope_table
from .runtime import source_of as source_of
