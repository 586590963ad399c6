"""Scores of chains, labels, texts and boxes, and the tables and figures made of them."""
