"""The integer arithmetic of docs/numerics.md: primitives, tables, random bits. It imports no other room of intlm."""

LARGEST_NOISE = 46  # the largest magnitude in the Gaussian quantile table
