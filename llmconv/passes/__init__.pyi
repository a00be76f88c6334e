from .base import GraphPass as GraphPass
from .base import Pass as Pass
from .base import RewritePass as RewritePass
from .base import Use as Use
from .context import PassContext as PassContext
from .manager import PassManager as PassManager
from .manager import PassReport as PassReport
