"""Work pools: where runs go, and what each of them gets there."""
