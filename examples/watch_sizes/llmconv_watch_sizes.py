"""An observer: says how many nodes each pass has added."""

import logging

from llmconv import hookimpl
from llmconv.graph import Model
from llmconv.passes import Observer

logger = logging.getLogger(__name__)


class WatchSizes(Observer):
    """Logs the nodes of all graphs before and after each pass; `llmconv --verbose` shows it."""

    before = 0

    def before_pass(self, name: str, model: Model) -> None:
        self.before = nodes(model)

    def after_pass(self, name: str, model: Model) -> None:
        logger.info("%s: %d nodes became %d", name, self.before, nodes(model))


def nodes(model: Model) -> int:
    return sum(len(part.graph.nodes) for graph in model.graphs.values() for part in graph.parts)


@hookimpl
def register_observers() -> list[type[Observer]]:
    return [WatchSizes]
