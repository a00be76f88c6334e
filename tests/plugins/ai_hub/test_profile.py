"""What a device measured, as a report has it."""

from __future__ import annotations

from llmconv.graph import Graph
from llmconv_plugins.ai_hub.profile import Measured, _of_the_shortest


def test_of_several_contexts_the_shortest_counts() -> None:
    def measured(context: int, microseconds: int) -> Measured:
        summary = {"execution_summary": {"estimated_inference_time": microseconds}}
        return Measured("", Graph("token", 1, context, []), summary, "")

    both = [measured(512, 3000), measured(1024, 9000), measured(512, 4000), measured(1024, 9000)]  # of two parts
    assert _of_the_shortest(both) == [3.0, 4.0]
    assert _of_the_shortest([]) == []
