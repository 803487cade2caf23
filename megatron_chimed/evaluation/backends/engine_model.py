"""An engine, ours over a Megatron checkpoint or vLLM over its export, as a model for lm-eval."""

from collections.abc import Sequence

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from megatron_chimed.evaluation.backends.encoding import Encoder
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.inference.thinking import Marks, spell, split_thinking
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import Tokenizer

MAX_TOKENS = 256


class EngineLikelihoods:
    """Log-likelihoods by `engine`, in front of a class of lm-eval's."""

    engine: Engine

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs
    ) -> list[tuple[float, bool]]:
        """By the engine, which reads once what prompts have in common."""
        return self.engine.loglikelihoods([(context, continuation) for _, context, continuation in requests])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As in lm-eval, without a bar of its own."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)


class EngineModel(EngineLikelihoods, TemplateLM):
    """An engine with a tokenizer. seed, cut: as for `HuggingFaceModel`. Closing it ends the engine."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, template: Template):
        super().__init__()
        self.engine, self.encoder, self.seed = engine, Encoder(tokenizer, template), 0
        self.cut = self.encoder.cut

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.encoder.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Positions of the model."""
        return self.engine.max_positions

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """The ids of a plain text; add_special_tokens False leaves BOS out."""
        return self.encoder.text(string, bos=add_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.encoder.pair(context, super()._encode_pair(context, continuation), self.engine.max_pair)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """No task here needs it. Raises NotImplementedError."""
        raise NotImplementedError("no perplexity here")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """As in lm-eval. The ids that end an answer end it; another stop string cuts it afterwards."""
        asked = [self._request(*request.args, number) for number, request in enumerate(requests)]
        texts, renderer = [""] * len(requests), self.encoder.renderer
        for batch in self.engine.generate(asked, list(renderer.stop_ids)):
            for index, answer in batch:
                text = spell(answer.tokens, renderer)
                texts[index] = until(text, requests[index].args[1].get("until", ()), self.encoder.marks)
        return texts

    def _request(self, prompt: str, settings: dict, number: int) -> Request:
        """The engine's request."""
        max_tokens = settings.get("max_gen_toks", MAX_TOKENS)
        ids = self.encoder.prompt(prompt, self.max_length - max_tokens)
        sampled = bool(settings.get("do_sample"))
        params = SamplingParams(
            max_tokens,
            temperature=settings.get("temperature", 1.0) if sampled else 0.0,
            top_p=settings.get("top_p", 1.0) if sampled else 1.0,
            seed=self.seed + number,
        )
        return Request(ids, params)

    def close(self) -> None:
        """End the engine."""
        self.engine.close()


def until(text: str, stops: Sequence[str], marks: Marks) -> str:
    """The text in front of the first of the stop strings; those do not count in its thinking, which stays.

    >>> until("A\\n\\nB", ["\\n\\n"], Marks("<think>", "</think>"))
    'A'
    """
    answer = split_thinking(text, marks).text
    thinking, text = text[: len(text) - len(answer)], answer
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return thinking + text
