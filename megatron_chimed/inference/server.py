"""Serve a model to the engine, as one of its tensor-parallel ranks.

Reads requests from a socket that the engine has left open, one JSON object a line, and answers each with a line. All
ranks get each request, compute it together and answer the same. A rank ends when its socket does, which also the kernel
closes, when the engine's process is killed.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from megatron_chimed.backend import cpu
from megatron_chimed.errors import InputError, one_line
from megatron_chimed.inference import decode, scoring
from megatron_chimed.inference.lifeline import watch
from megatron_chimed.inference.model import Loaded, load
from megatron_chimed.inference.request import Request, SamplingParams


def join_ranks(rank: int, ranks: int, store: str) -> None:
    """Start torch.distributed among the engine's ranks, which meet in a file."""
    if not cpu.is_needed():
        torch.cuda.set_device(rank)
    backend = "gloo" if cpu.is_needed() else "nccl"
    torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks)


def end_with_engine(lifeline: int, folder: Path) -> None:
    """End this process at once when the other end of a pipe is closed, whatever it is doing, and leave no folder."""

    def end() -> None:
        for _ in range(20):  # the file in which ranks meet may be written again while another rank removes it
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.05)
        os._exit(1)

    watch(lifeline, end)


class Server:
    """Answers requests over a model, one after the other; between two it may hold a sample that is drawn in steps."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        self.tokens: Generator[int, None, None] | None = None

    @torch.inference_mode()
    def answer(self, request: dict[str, Any]) -> Any:
        """The result of one request, by its "do". All but "next" end the sample that is under way."""
        model, max_positions = self.loaded.model, self.loaded.max_positions
        if request["do"] != "next" and self.tokens is not None:
            self.tokens.close()
            self.tokens = None
        match request["do"]:
            case "generate":
                samples = [_request(one) for one in request["requests"]]
                limits = {"num_ids": request["num_ids"], "max_positions": max_positions}
                done = decode.generate(model, samples, request["stop"], **limits)
                return [[sample.tokens, sample.finished] for sample in done]
            case "stream":
                limits = {"num_ids": request["num_ids"], "max_positions": max_positions}
                self.tokens = decode.stream(model, _request(request["request"]), request["stop"], **limits)
                return next(self.tokens)
            case "next":
                return None if self.tokens is None else next(self.tokens, None)
            case "loglikelihoods":
                return scoring.loglikelihoods(model, request["pairs"], self.loaded.num_ids)
            case "rewards":
                return scoring.rewards(model, request["sequences"])


def _request(asked: dict[str, Any]) -> Request:
    """A request from JSON."""
    return Request(asked["prompt"], SamplingParams(**asked["params"]))


def serve(settings: dict[str, Any]) -> None:
    """Load the checkpoint, say what it is, and serve until the engine closes the socket."""
    end_with_engine(settings["lifeline"], Path(settings["store"]).parent)
    with socket.socket(fileno=settings["socket"]) as channel, channel.makefile("rw", encoding="utf-8") as lines:

        def say(message: dict[str, Any]) -> None:
            lines.write(json.dumps(message) + "\n")
            lines.flush()

        try:
            join_ranks(settings["rank"], settings["ranks"], settings["store"])
            loaded = load(Path(settings["checkpoint"]), settings["iteration"], settings["dtype"])
        except (InputError, OSError) as error:
            say({"error": one_line(error)})
            return
        say({"result": {"head": loaded.head, "num_ids": loaded.num_ids, "max_positions": loaded.max_positions}})
        server = Server(loaded)
        for line in lines:
            say({"result": server.answer(json.loads(line))})
