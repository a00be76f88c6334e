from .calibration import CALIBRATION as CALIBRATION
from .calibration import Range as Range
from .calibration import sharing_groups as sharing_groups
from .quantizer import nearest as nearest
from .streaming import calibrate as calibrate
