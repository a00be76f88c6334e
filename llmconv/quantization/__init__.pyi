from .calibration import CALIBRATION as CALIBRATION
from .calibration import MOVEMENT as MOVEMENT
from .calibration import Range as Range
from .calibration import collect_ranges as collect_ranges
from .calibration import sharing_groups as sharing_groups
from .streaming import calibrate as calibrate
