from .identity import code_identity as code_identity
from .local import in_processes as in_processes
from .machine import give_back_memory as give_back_memory
from .machine import memory_at_hand as memory_at_hand
from .machine import peak_memory as peak_memory
from .steps import Steps as Steps
from .steps import key_of as key_of
from .steps import work_of as work_of
