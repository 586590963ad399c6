"""The clinician's room: vocabulary in TOML, read and linted by one loader."""

from knowledge_banks.loader import Banks, expand, load_banks, read_bank
from knowledge_banks.prompt import Prompt, load_prompt, load_withheld

__all__ = ["Banks", "Prompt", "expand", "load_banks", "load_prompt", "load_withheld", "read_bank"]
