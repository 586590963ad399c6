"""The three training stages on a dataset of chains, from recipe to predictions."""
