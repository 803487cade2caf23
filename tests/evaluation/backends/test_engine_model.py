"""Engines in lm-eval: what is asked of them fits them."""

from support.dialogues import make_renderer

from megatron_chimed.evaluation.backends.engine_model import EngineModel
from megatron_chimed.inference.engine import Engine


class Short(Engine):
    """Takes pairs of as many tokens as it has positions, less one, as vLLM does."""

    kind, num_ids, max_positions, max_pair = "short", 420, 32, 31

    def loglikelihoods(self, pairs):
        self._check_pairs(pairs)
        return [(-1.0, False) for _ in pairs]

    def close(self):
        pass


def test_a_pair_is_cut_to_what_the_engine_takes(tmp_path):
    renderer = make_renderer("sentencepiece", tmp_path)
    model = EngineModel(Short(), renderer.tokenizer, renderer.template)
    context, continuation = model._encode_pair("头痛" * 100, "感冒")
    assert len(context) + len(continuation) == 31
    assert model._loglikelihood_tokens([(("", ""), context, continuation)]) == [(-1.0, False)]
