"""Chest X-ray reports to verifiable Findings → Disease → Anatomy chains."""

__version__ = "0.1.0"
