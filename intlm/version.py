"""The package's version, and the version of the arithmetic that it computes (docs/numerics.md)."""

__version__ = "0.1.0"
NUMERICS_VERSION = 3
