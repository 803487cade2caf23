"""The model of an engine over a Hugging Face folder in lm-eval's own backend, with prompts encoded as in training."""

from collections.abc import Iterable

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from megatron_chimed.evaluation.backends.encoding import Encoder
from megatron_chimed.evaluation.backends.engine_model import EngineLikelihoods, until
from megatron_chimed.inference.hf_engine import HuggingFaceEngine
from megatron_chimed.inference.thinking import spell
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import Tokenizer


class HuggingFaceModel(EngineLikelihoods, HFLM):
    """lm-eval's HFLM, for its batches, on one device; how texts become ids is ours.

    seed: of the samples of the next call; cut: prompts that were too long -> [tokens, tokens kept].
    """

    def __init__(self, engine: HuggingFaceEngine, tokenizer: Tokenizer, template: Template, *, batch_size: int = 8):
        """Closing it closes the engine."""
        self.encoder, self.engine = Encoder(tokenizer, template), engine
        self.cut, self.seed = self.encoder.cut, 0
        never = list(range(engine.sampled_ids or engine.num_ids, engine.num_ids))
        engine.model.generation_config.suppress_tokens = never or None  # the answers are transformers' own
        super().__init__(pretrained=engine.model, tokenizer=engine.folder, batch_size=batch_size)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs,
    ) -> list[int]:
        """The ids of a plain text, or of a prompt with turns; add_special_tokens False leaves BOS out."""
        if hasattr(string, "turns"):
            return self.encoder.renderer.render_prompt(string.turns).tolist()
        return self.encoder.text(string, bos=add_special_tokens)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask [batch, longest], padded on the left."""
        limit = left_truncate_len or self.max_length
        rows = [self.encoder.prompt(string, limit) for string in strings]
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        ids = [[pad] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids), torch.tensor(mask)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.encoder.pair(context, super()._encode_pair(context, continuation), self.max_length + 1)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """As in lm-eval, without a bar of its own; samples depend on `seed` and the requests of the call."""
        torch.manual_seed(self.seed)
        if not self.encoder.template.thinking:
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        settings = [request.args[1] for request in requests]  # a stop string may stand in the thinking
        open_ended = [
            Instance(request.request_type, request.doc, (request.args[0], {**one, "until": []}), request.idx)
            for request, one in zip(requests, settings, strict=True)
        ]
        texts = super().generate_until(open_ended, disable_tqdm=disable_tqdm)
        stops = [one.get("until", ()) for one in settings]
        return [until(text, some, self.encoder.marks) for text, some in zip(texts, stops, strict=True)]

    def tok_decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of an answer, tokens around its thinking by their names; or lm-eval's, with special tokens."""
        if skip_special_tokens and self.encoder.template.thinking:
            return spell(tokens, self.encoder.renderer)
        return super().tok_decode(tokens, skip_special_tokens=skip_special_tokens)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings) -> torch.Tensor:
        """As in lm-eval; the template's end and EOS end an answer, whatever the folder's generation config says."""
        ends = {"eos_token_id": list(self.encoder.renderer.stop_ids)}
        return super()._model_generate(context=context, max_length=max_length, stop=stop, **settings, **ends)

    def close(self) -> None:
        """End the engine."""
        self.engine.close()
