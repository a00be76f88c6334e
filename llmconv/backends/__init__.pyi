from .backend import Backend as Backend
from .backend import Binary as Binary
from .backend import BuildJob as BuildJob
from .backend import BuildResult as BuildResult
from .backend import Progress as Progress
from .backend import Stage as Stage
from .exporter import Exporter as Exporter
from .limit import Limit as Limit
