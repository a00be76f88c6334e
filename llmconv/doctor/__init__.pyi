from .finding import Checkup as Checkup
from .finding import Finding as Finding
