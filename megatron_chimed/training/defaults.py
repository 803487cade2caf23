"""Megatron arguments that follow from what is installed here, for those that the user does not give."""

from typing import Any

from megatron_chimed.backend import cpu
from megatron_chimed.config import Located
from megatron_chimed.models.gpt import has
from megatron_chimed.training import arguments


def defaults(settings: dict[str, Located]) -> dict[str, Any]:
    """Arguments that follow from what is installed here, for those that the user does not give."""
    chosen: dict[str, Any] = {"calculate-per-token-loss": True, "dataloader-type": "external"}
    chosen["no-check-for-nan-in-loss-and-grad"] = True  # upstream's raises on one rank; supervision.py does it on all
    chosen["eval-interval"] = 1000  # upstream divides by it, also where it says that without one nothing is evaluated
    has_te = has("transformer_engine") and not cpu.is_needed()
    chosen["transformer-impl"] = "transformer_engine" if has_te else "local"
    if "vocab-size" in settings:
        chosen["padded-vocab-size"] = arguments.padded_vocabulary(settings)
    given = settings.get("transformer-impl")
    if (given.value if given else chosen["transformer-impl"]) == "local":
        chosen |= {
            "no-rope-fusion": True,
            "no-persist-layer-norm": True,
            "no-masked-softmax-fusion": True,
        }
        if not has("fused_weight_gradient_mlp_cuda"):
            chosen["no-gradient-accumulation-fusion"] = True
    kind = settings.get("position-embedding-type")
    if kind and kind.value == "yarn":
        chosen["no-rope-fusion"] = True  # upstream's fused kernel of packed rows leaves out YaRN's attention factor
    dropout = (settings.get(key, Located(0.1, "Megatron's default")) for key in ("attention-dropout", "hidden-dropout"))
    if any(str(rate.value) not in ("0", "0.0") for rate in dropout):
        # Otherwise every data-parallel rank resumes with the dropout generator of rank 0, and packed rows draw apart.
        chosen["data-parallel-random-init"] = True
    if cpu.is_needed():
        chosen |= {
            "distributed-backend": "gloo",
            "use-cpu-initialization": True,
            "no-bias-swiglu-fusion": True,
            "num-workers": 0,
        }
    return chosen
