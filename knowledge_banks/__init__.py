"""The clinician's room: vocabulary in TOML, read and linted by one loader."""

from knowledge_banks.loader import Banks, expand, load_banks, read_bank

__all__ = ["Banks", "expand", "load_banks", "read_bank"]
