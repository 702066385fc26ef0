"""The package's version, and the two versions of the arithmetic that it computes (docs/numerics.md)."""

__version__ = "0.1.0"
INFERENCE_VERSION = 3  # a trained model's logits, losses and drawn tokens depend on it
TRAINING_VERSION = 3  # the weights of a run depend on it; a change of inference changes it too
