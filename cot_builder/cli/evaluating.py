"""`cot-builder score` and `conventions`: predictions to numbers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cot_builder.cli.options import BankFolder, extra
from cot_builder.errors import UserError


class Missing(StrEnum):
    """What becomes of a study without a prediction."""

    empty = "empty"
    skip = "skip"


PredictionsFile = Annotated[
    Path,
    typer.Argument(
        metavar="PREDICTIONS",
        help="A folder that `predict` wrote, or JSON Lines or CSV with study_id and report.",
        show_default=False,
    ),
]
References = Annotated[
    Path,
    typer.Argument(
        metavar="REFERENCES",
        help="A dataset folder, or JSON Lines or CSV with study_id and report.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(metavar="SPLIT", help="Of a dataset: train, validation or test.",
                 show_default=False),
]  # fmt: skip
SectionName = Annotated[
    str, typer.Option(metavar="NAME", help="Of a dataset: the section to compare with.")
]
MissingOption = Annotated[
    Missing, typer.Option(help="A study without a prediction is an empty report, or left out.")
]
ReferenceLabels = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV", show_default=False,
        help="Your own CheXpert labels of the references (CheXbert's column names), by study_id.",
    ),
]  # fmt: skip
PredictionLabels = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="The same for the predictions.", show_default=False),
]
FrameName = Annotated[
    str | None,
    typer.Option(
        metavar="FRAME", show_default=False,
        help="The frame of the boxes of other people's files: norm1000, percent. Without it: the "
        "original's pixels.",
    ),
]  # fmt: skip


def score(
    predictions: PredictionsFile,
    references: References,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write scores.json and per_study.parquet here.", show_default=False
        ),
    ] = None,
    split: Split = None,
    section: SectionName = "findings",
    missing: MissingOption = Missing.empty,
    measures: Annotated[
        str, typer.Option(metavar="NAMES", help="Which measures, with commas; all unless given.")
    ] = "",
    tokens: Annotated[
        str,
        typer.Option(metavar="NAME", help="Text metrics on r2gen, r2gen_iu, raw, lower or ptb."),
    ] = "r2gen",
    max_seq_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            show_default=False,
            help="Cut both texts as R2Gen does: 60 for IU X-Ray, 100 for MIMIC-CXR.",
        ),
    ] = None,
    convention: Annotated[
        str, typer.Option(metavar="NAME", help="Of the headline CheXpert score.")
    ] = "boxmed_table3",
    reference_labels: ReferenceLabels = None,
    prediction_labels: PredictionLabels = None,
    frame: FrameName = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model's name in tables.", show_default=False),
    ] = None,
    banks: BankFolder = None,
) -> None:
    """Score predicted reports: text metrics, CheXpert efficacy; every number with its recipe and n.

    A study without a prediction counts as an empty report, a study that comes twice is an error,
    the order does not matter. METEOR needs Java and the `meteor` extra.

    For example:

    - `cot-builder score out/predictions out/mimic --split test --out out/scores`
    - `cot-builder score theirs.csv out/iu --tokens r2gen_iu --max-seq-length 60`
    """
    with extra("eval", "score"):
        from eval import records
        from eval import score as scoring
        from eval.chexpert import CONVENTIONS
        from eval.text import TOKENS

    _known(tokens, TOKENS, "--tokens")
    _known(convention, CONVENTIONS, "--convention")
    paired = records.read_pairs(
        predictions, references, split=split, section=section, missing=missing.value, frame=frame
    )
    settings = scoring.Settings(
        tokens, max_seq_length, convention, reference_labels, prediction_labels, banks
    )
    chosen = [m.strip() for m in measures.split(",")] if measures else list(scoring.MEASURES)
    scored = scoring.score(paired, settings, name=name or predictions.stem, measures=chosen)
    Console().print(scored)
    if out:
        described = {
            "predictions": str(predictions),
            "references": str(references),
            "split": split,
            "section": section,
            "missing": missing.value,
            "settings": settings._asdict(),
        }
        scoring.write_scores(scored, out, described=described)


def conventions(
    predictions: PredictionsFile,
    references: References,
    split: Split = None,
    section: SectionName = "findings",
    missing: MissingOption = Missing.empty,
    reference_labels: ReferenceLabels = None,
    prediction_labels: PredictionLabels = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Write the table here too.", show_default=False),
    ] = None,
    banks: BankFolder = None,
) -> None:
    """Show how far one set of predictions moves between conventions of CheXpert efficacy.

    For example:

    - `cot-builder conventions theirs.csv out/mimic --split test`
    """
    with extra("eval", "conventions"):
        import pandas as pd

        from cot_builder.decompose import Decomposer
        from eval.chexpert import both_sides, spread
        from eval.records import read_pairs
        from eval.score import spread_table
        from knowledge_banks import load_banks

    paired = read_pairs(
        predictions, references, split=split, section=section, missing=missing.value
    )
    sides = both_sides(
        paired.pairs,
        Decomposer(load_banks(banks)),
        reference_labels=reference_labels,
        prediction_labels=prediction_labels,
    )
    rows = spread(sides.reference, sides.prediction)
    console = Console()
    console.print(spread_table(rows, n=len(paired.pairs)))
    f1 = {key: found.f1 for key, found in rows.items() if found.f1 == found.f1}
    low, high = min(f1, key=f1.__getitem__), max(f1, key=f1.__getitem__)
    console.print(
        f"The same predictions score an F1 from {f1[low]:.4f} ({low}) to {f1[high]:.4f} ({high}); "
        f"labels by {sides.labeler}",
        highlight=False,
        soft_wrap=True,
    )
    if out:
        pd.DataFrame.from_dict(rows, orient="index").rename_axis("convention").to_csv(out)


def _known(name: str, names: object, option: str) -> None:
    assert isinstance(names, dict)
    if name not in names:
        raise UserError(f"{option} {name!r}: expected one of {', '.join(names)}")
