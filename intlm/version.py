"""The package's version, and the two versions of the arithmetic that it computes (docs/numerics.md)."""

__version__ = "0.1.0"
INFERENCE_VERSION = 3  # a trained model's logits, losses and drawn tokens depend on it
TRAINING_VERSION = 4  # the weights of a run depend on it, as far as its estimator does (`Estimator.training_version`)
