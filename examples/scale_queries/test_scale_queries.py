from llmconv_scale_queries import ScaleQueries

from llmconv.testing import TinyDecoder, try_pass


def test_scales_each_attention_once_and_computes_the_same(llmconv_module: TinyDecoder) -> None:
    trial = try_pass(ScaleQueries, llmconv_module)  # fails where a logit moves by more than the pass declares
    for name, before in trial.before.items():
        assert trial.after[name]["mul"] - before["mul"] == before["sdpa"] > 0
