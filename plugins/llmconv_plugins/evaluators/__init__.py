"""The built-in evaluators, one a file."""

from llmconv import hookimpl
from llmconv.evaluation import Evaluator
from llmconv_plugins.evaluators.agreement import Agreement
from llmconv_plugins.evaluators.perplexity import Perplexity


@hookimpl
def register_evaluators() -> list[type[Evaluator]]:
    """The built-in evaluators."""
    return [Perplexity, Agreement]
