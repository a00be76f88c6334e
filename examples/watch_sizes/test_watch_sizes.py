import logging

import pytest
from llmconv_watch_sizes import WatchSizes

from llmconv.graph import Model, trace
from llmconv.passes import Observers, PassManager
from llmconv.testing import random_weights, tiny_module
from llmconv_plugins.passes import KVCacheIO, SplitHeads


def test_says_what_each_pass_has_added(caplog: pytest.LogCaptureFixture) -> None:
    module = tiny_module()
    model = Model({"token": trace(module, 1, 8, "token")}, random_weights(module), None)
    with caplog.at_level(logging.INFO, logger="llmconv_watch_sizes"):
        reports = PassManager([KVCacheIO(), SplitHeads()], observers=Observers([WatchSizes()])).run(model)
    counts = [report.nodes["token"] for report in reports]
    assert [r.message for r in caplog.records if r.name == "llmconv_watch_sizes"] == [
        f"kv_cache_io: {counts[0][0]} nodes became {counts[0][1]}",
        f"split_heads: {counts[1][0]} nodes became {counts[1][1]}",
    ]
