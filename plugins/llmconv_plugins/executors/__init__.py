"""The built-in executors."""

from llmconv import hookimpl
from llmconv.work import Executor, Local
from llmconv_plugins.executors.dask_executor import Dask


@hookimpl
def register_executors() -> list[type[Executor]]:
    """The built-in executors."""
    return [Local, Dask]
