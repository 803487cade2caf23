"""The model of an engine over a Hugging Face folder in lm-eval's own backend, with prompts encoded as in training."""

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from megatron_chimed.evaluation.backends.encoding import Encoder
from megatron_chimed.inference.hf_engine import HuggingFaceEngine
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import Tokenizer


class HuggingFaceModel(HFLM):
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

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As in lm-eval, without a bar of its own."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """As in lm-eval, without a bar of its own; samples depend on `seed` and the requests of the call."""
        torch.manual_seed(self.seed)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def close(self) -> None:
        """End the engine."""
        self.engine.close()
