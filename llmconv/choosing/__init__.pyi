from .chooser import Chooser as Chooser
from .chooser import Facts as Facts
from .draft import Draft as Draft
from .draft import Line as Line
from .draft import Section as Section
