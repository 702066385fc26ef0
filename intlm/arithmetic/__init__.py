"""The integer arithmetic of docs/numerics.md: primitives, tables, random bits. Knows of nothing else."""

LARGEST_NOISE = 46  # the largest magnitude in the Gaussian quantile table
