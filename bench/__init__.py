"""How fast, against what: every figure a ratio taken in one run."""
