"""intlm: pretrain recurrent language models in integers, the same bits everywhere.

    model = intlm.load("runs/quickstart")
    model.losses("some text"), model.logits("some text")
    intlm.generate(model, b"some text", tokens=200)

Importing the package is quick: JAX comes with the first of these names that is used.
"""

from typing import TYPE_CHECKING, Any

from intlm.version import INFERENCE_VERSION, TRAINING_VERSION, __version__

if TYPE_CHECKING:
    from intlm.generation import generate
    from intlm.language_model import LanguageModel
    from intlm.run import load

__all__ = ["INFERENCE_VERSION", "TRAINING_VERSION", "LanguageModel", "__version__", "generate", "load"]


def __getattr__(name: str) -> Any:
    if name == "generate":
        from intlm.generation import generate

        return generate
    if name in ("LanguageModel", "load"):
        from intlm import run

        return getattr(run, name)
    raise AttributeError(f"module 'intlm' has no attribute {name!r}")
