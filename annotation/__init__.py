"""Human review of chains in Label Studio: tasks out, reviews back, agreement between readers."""
