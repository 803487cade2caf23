"""A Hugging Face folder through transformers, token by token, with the draws of our own engine.

The same prompt, settings and seed give the tokens that the Megatron checkpoint gives, as far as the arithmetic goes.
The folder's generation_config.json has no say.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from megatron_chimed.errors import InputError, one_line
from megatron_chimed.inference.request import Request
from megatron_chimed.inference.sampling import draw, uniforms


class HuggingFaceStream:
    """num_ids, max_positions: as of `inference.client.Engine`; one GPU where there is one, else the CPU."""

    def __init__(self, folder: Path, dtype: str = "auto"):
        """dtype: float32 or bfloat16; "auto" is that of the weights. Raises InputError if it is no language model."""
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{folder}: transformers cannot load it ({one_line(error)[:200]})") from None
        if report["missing_keys"]:
            raise InputError(f"{folder}: no language model; {sorted(report['missing_keys'])[0]} is missing")
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.num_ids, self.max_positions = model.config.vocab_size, model.config.max_position_embeddings

    @torch.inference_mode()
    def stream(self, request: Request, stop: Sequence[int]) -> Iterator[int]:
        """The tokens of one sample, as `inference.client.Engine.stream` gives them."""
        device = self.model.device
        room = min(request.max_tokens, self.max_positions - len(request.prompt))
        uniform = uniforms(request.seed, room).to(device)
        settings = [
            torch.tensor([setting], device=device)
            for setting in (float(request.temperature), request.top_k, float(request.top_p))
        ]
        new, cache = torch.tensor([list(request.prompt)], device=device), None
        for step in range(room):
            output = self.model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = draw(output.logits[:, -1].float(), uniform[step : step + 1], *settings)
            yield token.item()
            if token.item() in stop:
                return
            new, cache = token[:, None], output.past_key_values

    def close(self) -> None:
        """Nothing to end."""
