"""Invented report pairs for the metrics' tests: a good share of them awkward."""

from __future__ import annotations

import random

SENTENCES = (
    "The heart is normal in size.",
    "Heart size upper normal, unchanged",
    "1. Small left pleural effusion. 2. Mild edema.",
    "No pneumothorax or consolidation.",
    "There is a 1.5 cm nodule in the right upper lobe...",
    "Right IJ line with tip in the SVC; no pneumothorax!",
    "Possible atelectasis/pneumonia at the left base.",
    "Follow-up x-ray (PA & lateral) is suggested.",
    "Moderate cardiomegaly __ with pulmonary  edema.",
    'The "silhouette" isn\'t enlarged.',
    "Lungs are low in volume.",
    "Old rib fracture\non the right.",
    "",
)


def report_pairs(count: int, seed: int = 7) -> list[tuple[str, str]]:
    """Pairs of a reference and a prediction that shares some of its sentences; some are empty."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        reference = draw.choices(SENTENCES[:-1], k=draw.randint(1, 9))
        kept = [s for s in reference if draw.random() < 0.5]
        prediction = kept + draw.choices(SENTENCES, k=draw.randint(0, 5))
        draw.shuffle(prediction)
        pairs.append((" ".join(reference), " ".join(prediction)))
    return pairs
