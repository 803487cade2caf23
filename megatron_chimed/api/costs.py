"""What chat requests will cost, about."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_chimed.api.client import ChatRequest
from megatron_chimed.errors import InputError

PER_ASCII, PER_OTHER = 0.25, 1.2  # tokens of a character: a rough rule for GPT's tokenizers, good for an estimate


@dataclass(frozen=True)
class Prices:
    """per_million_in, per_million_out: of tokens, one for each model, or one for all, or none; answer_tokens: expected
    in an answer."""

    per_million_in: tuple[float, ...] = ()
    per_million_out: tuple[float, ...] = ()
    answer_tokens: int = 400

    @classmethod
    def parse(cls, price_in: str, price_out: str, answer_tokens: int) -> "Prices":
        """Of flags like "30,0.5"; "" for none. Raises InputError."""
        try:
            prices = [tuple(float(part) for part in text.split(",") if text) for text in (price_in, price_out)]
        except ValueError:
            raise InputError("--price-in, --price-out: expected numbers, separated by commas") from None
        if bool(price_in) != bool(price_out) or not all(0 <= price < math.inf for one in prices for price in one):
            raise InputError("--price-in and --price-out go together, each price 0 or more")
        if answer_tokens < 1:
            raise InputError(f"--answer-tokens {answer_tokens}: expected a number from 1")
        return cls(*prices, answer_tokens)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has for GPT's tokenizers.

    >>> estimate_tokens("胃疼怎么办") , estimate_tokens("What helps?!")
    (6, 3)
    """
    num_ascii = sum(character.isascii() for character in text)
    return round(num_ascii * PER_ASCII + (len(text) - num_ascii) * PER_OTHER)


def estimate_table(to_send: Mapping[str, Sequence[ChatRequest]], num_requests: int, prices: Prices) -> str:
    """Requests, tokens and, with prices, money for each model and all of them.

    to_send: the requests to each model that have no answer yet, of num_requests. Raises InputError when the prices do
    not fit the models.
    """
    rows = _estimate(to_send, num_requests, prices)
    names = ["requests", "kept already", "tokens in", "tokens out", "price"][: len(rows["total"])]
    lines = [f"{'estimate':24}" + "".join(f"{name:>14}" for name in names)]
    for model, row in rows.items():
        lines.append(f"{model:24}" + "".join(f"{n:>14,.2f}" if isinstance(n, float) else f"{n:>14,}" for n in row))
    return "\n".join(lines)


def estimate_price(to_send: Mapping[str, Sequence[ChatRequest]], prices: Prices) -> float | None:
    """What all requests will cost; None without prices. Raises InputError as `estimate_table`."""
    return _estimate(to_send, 0, prices)["total"][4] if prices.per_million_in else None


def _estimate(
    to_send: Mapping[str, Sequence[ChatRequest]], num_requests: int, prices: Prices
) -> dict[str, list[int | float]]:
    """{model, and "total": requests, those that are kept already, tokens in, tokens out, and with prices the price}."""
    costs = [_for_each(len(to_send), one) for one in (prices.per_million_in, prices.per_million_out)]
    rows = {}
    for place, (model, requests) in enumerate(to_send.items()):
        tokens_in = sum(estimate_tokens(message["content"]) for one in requests for message in one.messages)
        tokens_out = sum(min(prices.answer_tokens, one.options.get("max_tokens", math.inf)) for one in requests)
        rows[model] = [num_requests, num_requests - len(requests), tokens_in, tokens_out]
        if all(costs):
            rows[model].append((tokens_in * costs[0][place] + tokens_out * costs[1][place]) / 1e6)
    return rows | {"total": [sum(column) for column in zip(*rows.values(), strict=True)]}


def _for_each(num_models: int, prices: tuple[float, ...]) -> tuple[float, ...]:
    """A price for each model. Raises InputError when there are neither one, nor as many, nor none."""
    if len(prices) not in (0, 1, num_models):
        raise InputError(f"{len(prices)} prices for {num_models} models; give one for each in their order, or one")
    return prices if len(prices) != 1 else prices * num_models
