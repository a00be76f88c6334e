from .remake import described as described
from .remake import remake as remake
from .resolve import Checked as Checked
from .resolve import check as check
from .trace import lay_out as lay_out
from .trace import spread_ids as spread_ids
