"""One copy of a model in vLLM: ``python -m megatron_chimed.inference.vllm_worker SETTINGS`` (a JSON object).

It is a process of its own, also for one copy: what vllm sets in the environment stays here, and its memory is free when
this has ended. vLLM starts further processes, which outlive the one that started them: this one watches a pipe that the
kernel closes with the engine's process, and ends all of them.

Requests and answers are lines of JSON on a socket, as for `worker`.
"""

import json
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from megatron_chimed.errors import one_line
from megatron_chimed.inference.lifeline import watch
from megatron_chimed.inference.processes import last_words

SHUTDOWN = 15.0
"""Seconds that vLLM has to end its processes before they are killed."""


class Copy:
    """A model in vLLM, and what it is asked.

    settings: `head`, lm or reward; the rest goes to vLLM's LLM.
    """

    def __init__(self, head: str, **settings: Any):
        from vllm import LLM

        if head == "reward":
            settings["runner"] = "pooling"
        self.model = LLM(**settings)
        # On a CPU a prompt with a seed that is prefilled in parts ends the engine ("does not use offset").
        scheduler = self.model.llm_engine.vllm_config.scheduler_config
        self.tokens_at_once = scheduler.max_num_batched_tokens if _on_cpu() else sys.maxsize

    def limits(self) -> dict[str, int]:
        """Ids and positions of the model."""
        config = self.model.llm_engine.model_config
        return {"num_ids": config.get_vocab_size(), "max_positions": config.max_model_len}

    def answer(self, request: dict[str, Any]) -> list:
        """The results of one request's work, in its order."""
        return {"sample": self._sample, "score": self._score, "rewards": self._rewards}[request["do"]](request["work"])

    def _sample(self, work: list[tuple[list[int], dict]]) -> list[tuple[list[int], bool]]:
        """(prompt, settings) -> (new tokens, whether a stop token ended them)."""
        for _, settings in work:
            if "logit_bias" in settings:  # JSON has made texts of the ids
                settings["logit_bias"] = {int(token): bias for token, bias in settings["logit_bias"].items()}
        outputs = []
        for part in passes_of([len(prompt) for prompt, _ in work], self.tokens_at_once):
            outputs += [answer.outputs[0] for answer in self._run(work[part])]
        return [(list(one.token_ids), one.finish_reason == "stop") for one in outputs]

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(context, continuation) -> (log-likelihood, whether greedy)."""
        wanted = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1, "detokenize": False}
        answers = self._run([([*context, *continuation], wanted) for context, continuation in pairs])
        scores = []
        for (context, continuation), answer in zip(pairs, answers, strict=True):
            # At each position: the prompt's own token, and the most likely one if that is another.
            places = answer.prompt_logprobs[len(context) :]
            own = [place[token] for place, token in zip(places, continuation, strict=True)]
            scores.append((sum(one.logprob for one in own), all(one.rank == 1 for one in own)))
        return scores

    def _rewards(self, sequences: list[list[int]]) -> list[float]:
        """The score at the last token of each, as the head gives it: without the sigmoid that vLLM puts behind it."""
        import vllm

        prompts = [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens in sequences]
        answers = self.model.classify(prompts, pooling_params=vllm.PoolingParams(use_activation=False), use_tqdm=False)
        return [answer.outputs.probs[0] for answer in answers]

    def _run(self, work: list[tuple[list[int], dict]]) -> list:
        import vllm

        prompts = [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens, _ in work]
        return self.model.generate(prompts, [vllm.SamplingParams(**one) for _, one in work], use_tqdm=False)

    def close(self) -> None:
        """End vLLM's own processes."""
        self.model.llm_engine.engine_core.shutdown()


def passes_of(lengths: list[int], num_tokens: int) -> list[slice]:
    """Neighbours of at most so many tokens together, or a single one.

    passes_of([2, 3, 3, 9, 1], num_tokens=8) == [slice(0, 3), slice(3, 4), slice(4, 5)]
    """
    found, start, total = [], 0, 0
    for number, length in enumerate(lengths):
        if number > start and total + length > num_tokens:
            found.append(slice(start, number))
            start, total = number, 0
        total += length
    return [*found, slice(start, len(lengths))] if lengths else []


def _on_cpu() -> bool:
    """Whether vLLM computes on a CPU here."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


class _Life:
    """Ends this process and all that it has started when the engine's process has ended or closed its pipe."""

    def __init__(self, settings: dict[str, Any]):
        self.copy: Copy | None = None
        self.folder = Path(settings["store"]).parent
        self.thread = watch(settings["lifeline"], self._end)

    def _end(self) -> None:
        if self.copy is not None:
            closing = threading.Thread(target=self.copy.close, daemon=True)  # it tidies up shared memory
            closing.start()
            closing.join(SHUTDOWN)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)


def serve(settings: dict[str, Any]) -> None:
    """Load the model, say what it is, and answer until the engine closes the pipe."""
    life = _Life(settings)
    with socket.socket(fileno=settings["socket"]) as channel, channel.makefile("rw", encoding="utf-8") as lines:

        def say(message: dict[str, Any]) -> None:
            lines.write(json.dumps(message) + "\n")
            lines.flush()

        try:
            try:
                life.copy = Copy(**settings["model"])
                say({"result": life.copy.limits()})
                for line in lines:
                    say({"result": life.copy.answer(json.loads(line))})
            except OSError:
                raise
            except Exception as error:  # vLLM raises nearly anything, and says the cause in its log
                said = one_line(error)
                if life.copy is None or "Dead" in type(error).__name__:
                    said = last_words(settings["log"], otherwise=said)
                say({"error": f"vllm: {said}"})
        except OSError:  # the engine's process has ended
            pass
        life.thread.join()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
