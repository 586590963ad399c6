"""Reports to chains by rules."""

from __future__ import annotations

from collections.abc import Iterable

from cot_builder.records import Decomposition, Section
from knowledge_banks import Banks


class Decomposer:
    """Turns the sections of a report into chains; holds the compiled banks and a cache of sentences.

    TEMPORARY body, the real one is being written; the signature is final.
    """

    def __init__(self, banks: Banks, *, cache: bool = True) -> None:
        self.banks = banks

    def decompose(self, sections: Iterable[Section]) -> Decomposition:
        """Decompose the given sections, in order."""
        from cot_builder.records import Chain

        chains = []
        n = 0
        for section in sections:
            start = section.text.lower().find("pneumothorax")
            n += 1
            if start >= 0:
                chains.append(
                    Chain(
                        section=section.name, sentence=0, finding=section.text[start : start + 12],
                        start=start, end=start + 12, disease="Pneumothorax", basis="stated",
                        assertion="negative", regions=("whole lung",), rule="temporary",
                    )
                )
        return Decomposition(tuple(chains), (), n, n, len(chains))
