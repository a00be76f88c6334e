"""The bundle's graphs in torch: the text that ONNX Runtime writes, from the bundle alone."""

from __future__ import annotations

import numpy as np
import pytest

from llmconv import Bundle, BundleError, Registry, Sampling
from llmconv.decoding import Decoder
from llmconv.runtimes.runtime import rope_table, source_of
from llmconv_plugins.runtimes.onnxruntime import OnnxRuntime
from llmconv_plugins.runtimes.torch import TorchRuntime

TOKENS = 24


def test_torch_writes_what_onnx_runtime_writes(small_bundle: Bundle) -> None:
    source = source_of(small_bundle, Registry.load())
    ids = [source.config().bos, *source.tokenizer().encode("If the argument is")]
    with TorchRuntime().dialog(small_bundle, Sampling(), []) as dialog:
        written = list(dialog.query(ids, TOKENS))
        assert dialog.length == len(ids) + TOKENS
    with OnnxRuntime().open(small_bundle) as runners:
        decoder = Decoder(runners, rope_table(small_bundle))
        logits = decoder.read(ids)[-1]
        for token in written:
            step = np.diff(np.unique(logits)).min()
            assert logits.max() - logits[token] <= 1.5 * step  # the likeliest, or a tie
            logits = decoder.read([token])[-1]


def test_one_graph_alone(small_bundle: Bundle) -> None:
    with TorchRuntime().open(small_bundle, ["token"]) as runners:
        assert [(r.name, r.ar, r.context) for r in runners] == [("token", 1, 128)]


def test_a_bundle_without_encodings(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    (folder / "manifest.json").write_text((small_bundle.folder / "manifest.json").read_text())
    (folder / "source").symlink_to(small_bundle.folder / "source")
    with pytest.raises(BundleError, match=r"encodings\.json: missing"), TorchRuntime().open(Bundle(folder)):
        pass
