"""vLLM behind the interface of our own engine (`inference.client.Engine`); vllm is imported only when it is asked for.

Written against vLLM's documented interface (`LLM`, `SamplingParams`, `TokensPrompt`). It wants GPUs and an environment
of its own (extra `vllm`) and was never run in the tests, which hold its calls against stand-ins for these classes.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.inference.request import Generated, Request


class VllmEngine:
    """A Hugging Face folder in vLLM. head: always "lm"; num_ids, max_positions: of the model."""

    head = "lm"

    def __init__(self, folder: Path, *, tensor_parallel: int = 1, dtype: str = "auto"):
        """Raises InputError where vllm is not installed."""
        if importlib.util.find_spec("vllm") is None:
            raise InputError(
                "--model vllm: vllm is not installed; install the extra `vllm` into an environment of its own, or give "
                "hf:DIR"
            )
        from vllm import LLM

        self.model = LLM(model=str(folder), dtype=dtype, tensor_parallel_size=tensor_parallel, skip_tokenizer_init=True)
        config = self.model.llm_engine.model_config
        self.num_ids, self.max_positions = config.get_vocab_size(), config.max_model_len

    def generate(self, requests: Sequence[Request], stop: Sequence[int]) -> Iterator[list[tuple[int, Generated]]]:
        """All answers as one batch of (index of the request, answer)."""
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=request.top_k or -1,  # every version takes -1 for all
                seed=request.seed,
                stop_token_ids=list(stop),
                detokenize=False,
            )
            for request in requests
        ]
        answers = self._run([list(request.prompt) for request in requests], settings)
        outputs = [answer.outputs[0] for answer in answers]
        yield [
            (number, Generated(list(one.token_ids), one.finish_reason == "stop")) for number, one in enumerate(outputs)
        ]

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the sum of log p of the continuation, and whether it is the greedy one."""
        from vllm import SamplingParams

        wanted = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
        answers = self._run([[*context, *continuation] for context, continuation in pairs], [wanted] * len(pairs))
        scores = []
        for (context, continuation), answer in zip(pairs, answers, strict=True):
            # At each position: the prompt's own token, and the most likely one if that is another.
            places = answer.prompt_logprobs[len(context) :]
            own = [place[token] for place, token in zip(places, continuation, strict=True)]
            scores.append((sum(one.logprob for one in own), all(one.rank == 1 for one in own)))
        return scores

    def _run(self, prompts: list[list[int]], settings: list) -> list:
        from vllm import TokensPrompt

        texts = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        return self.model.generate(texts, settings, use_tqdm=False)

    def close(self) -> None:
        """Let go of the model."""
        del self.model
