from .remake import described as described
from .remake import remake as remake
from .trace import spread_ids as spread_ids
