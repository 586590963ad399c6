"""`cot-builder predict`, `score`, `conventions`, `compare` and `cases`: a model to its numbers."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cot_builder.cli.drafting import endpoint
from cot_builder.cli.options import (
    LLM,
    BankFolder,
    Dataset,
    LlmBaseUrl,
    LlmBudget,
    LlmCache,
    LlmConcurrency,
    LlmKeyVariable,
    LlmMaxTokens,
    LlmPrice,
    LlmTemperature,
    LlmTimeout,
    ZeroRetentionHost,
    extra,
    spinner,
)
from cot_builder.errors import UserError
from cot_builder.paths import where


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
        help="A dataset folder, or its s3:// or hf:// address; or JSON Lines or CSV with study_id "
        "and report.",
        show_default=False,
        parser=where,
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


def predict(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            show_default=False,
            help="A folder that `train` wrote, or a Qwen-VL model's name on the Hub.",
        ),
    ],
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            show_default=False,
            help="A folder that `build` wrote, its s3:// or hf:// address, or OWNER/NAME@REVISION "
            "of the Hub.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The predictions folder.", show_default=False)
    ],
    split: Annotated[
        str, typer.Option(metavar="SPLIT", help="train, validation or test; all for every study.")
    ] = "test",
    image_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Where the release's images lie, for datasets without reduced ones of their own.",
        ),
    ] = None,
    phrases: Annotated[
        bool, typer.Option("--phrases", help="Ask for the dataset's phrases with boxes too.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="So many studies.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts at a time.")] = 4,
    report_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="The longest report.")
    ] = 256,
    answer_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="The longest reasoning with boxes.")
    ] = 256,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="float32, or bfloat16 on a GPU.")
    ] = "float32",
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, or cuda.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what a stopped run wrote.")
    ] = False,
    banks: BankFolder = None,
) -> None:
    """Write reports with a checkpoint, and reasoning and boxes for each of their sentences.

    The adapter writes the report, its base reasons about each sentence. Images that cannot be read
    are listed with their reason in `predictions.jsonl` and counted.

    For example:

    - `cot-builder predict out/run/adapter out/mimic --out out/predictions`
    - `cot-builder predict out/run/svr out/ms_cxr --image-root /data --phrases --out out/found`
    """  # fmt: skip
    with extra("train", "predict"):
        from knowledge_banks import load_banks
        from training.conversations import open_source
        from training.generate import Decoding, predict

    source = open_source(dataset, image_root)
    with spinner("studies") as progress:
        manifest = predict(
            checkpoint,
            source,
            out,
            banks=load_banks(banks),
            split=None if split == "all" else split,
            phrases=phrases,
            limit=limit,
            decoding=Decoding(batch, report_tokens, answer_tokens, dtype, device),
            resume=resume,
            progress=progress,
        )
    counts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in manifest["counts"].items())
    typer.echo(f"{counts} → {out}")


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
    bertscore: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="BERTScore too, with this model (the bertscore extra).",
            show_default=False,
        ),
    ] = None,
    bertscore_layer: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="The layer that it compares.", show_default=False),
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
    judges: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Let a model judge too: green, gema, radfact, with commas.",
            rich_help_panel=LLM,
        ),
    ] = "",
    llm_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The judge.", show_default=False, rich_help_panel=LLM),
    ] = None,
    open_data: Annotated[
        bool,
        typer.Option(
            "--open-data",
            rich_help_panel=LLM,
            help="References in a file are open data, and may be sent to any server.",
        ),
    ] = False,
    llm_base_url: LlmBaseUrl = "https://api.openai.com/v1",
    llm_key_variable: LlmKeyVariable = "OPENAI_API_KEY",
    zero_retention_host: ZeroRetentionHost = None,
    llm_temperature: LlmTemperature = 0.0,
    llm_max_tokens: LlmMaxTokens = 2048,
    llm_concurrency: LlmConcurrency = 32,
    llm_timeout: LlmTimeout = 120.0,
    llm_price_in: LlmPrice = None,
    llm_price_out: LlmPrice = None,
    llm_budget: LlmBudget = None,
    llm_cache: LlmCache = None,
    banks: BankFolder = None,
) -> None:
    """Score predicted reports: text, CheXpert, chains, boxes, judges; all with recipe and n.

    A study without a prediction counts as an empty report, a study that comes twice is an error,
    the order does not matter. METEOR needs Java and the `meteor` extra.

    For example:

    - `cot-builder score out/predictions out/mimic --split test --out out/scores`
    - `cot-builder score theirs.csv out/iu --tokens r2gen_iu --max-seq-length 60`
    - `cot-builder score theirs.csv out/iu --judges green,radfact --llm-model qwen3-8b
      --llm-base-url http://127.0.0.1:8000/v1 --llm-cache out/judged.sqlite`
    """  # fmt: skip
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
        tokens,
        max_seq_length,
        convention,
        reference_labels,
        prediction_labels,
        banks,
        bertscore,
        bertscore_layer,
    )
    chosen = [m.strip() for m in measures.split(",")] if measures else list(scoring.MEASURES)
    wanted = [j.strip() for j in judges.split(",")] if judges else []
    with ExitStack() as stack:
        judge = None
        if wanted:
            with extra("scale", "--judges"):
                from cot_builder.llm import Client
                from eval.judges import JUDGES, Judge

            for one in wanted:
                _known(one, JUDGES, "--judges")
            if not llm_model or not llm_cache:
                raise UserError(
                    "--judges needs --llm-model and --llm-cache, the file that keeps the answers"
                )
            asked = endpoint(
                llm_model,
                llm_base_url,
                temperature=llm_temperature,
                max_tokens=llm_max_tokens,
                key_variable=llm_key_variable,
                zero_retention_host=zero_retention_host,
                concurrency=llm_concurrency,
                timeout=llm_timeout,
                price_in=llm_price_in,
                price_out=llm_price_out,
                budget=llm_budget,
            )
            source = scoring.credentialed_source(references, open_data=open_data)
            client = Client(asked, llm_cache, credentialed=source, run="judges")
            judge = Judge(stack.enter_context(client), banks)
        scored = scoring.score(
            paired,
            settings,
            name=name or predictions.stem,
            measures=chosen,
            judges=wanted,
            judge=judge,
        )
    Console().print(scored)
    if out:
        described = {
            "predictions": str(predictions),
            "references": str(references),
            "split": split,
            "section": section,
            "missing": missing.value,
            "settings": settings._asdict(),
            "judge": asked.described() if wanted else None,
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


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders that `score --out` wrote.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Write tables and figures here.", show_default=False),
    ],
    full: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="The run that the others are tested against; the last one unless given.",
        ),
    ] = None,
    corpus: Annotated[
        str, typer.Option(metavar="NAME", help="mimic (Table 1) or iu (Table 2).")
    ] = "mimic",
    external: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            show_default=False,
            help="A run on reports of elsewhere, for Table 2 beside Table 1; may be given again.",
        ),
    ] = None,
    claims: Annotated[
        bool, typer.Option("--claims", help="Check claims of improvement against the numbers.")
    ] = False,
    resamples: Annotated[
        int, typer.Option(metavar="N", min=100, help="Of the paired bootstrap.")
    ] = 1000,
) -> None:
    """Lay runs out as the paper's Tables 1 to 5 beside its published rows, and as its Fig. 5.

    Runs named as the paper's ablations ("w/o SVR", "projector + adapter") fill Tables 4 and 5;
    stars say that a run is lower than the full one (one-tailed Wilcoxon on studies).

    For example:

    - `cot-builder compare out/scores --out out/tables`
    - `cot-builder compare out/no_svr out/no_mcl out/full --out out/tables --claims`
    - `cot-builder compare out/full --external out/full_on_iu --out out/tables`
    """  # fmt: skip
    with extra("eval", "compare"):
        from eval import claims as claiming
        from eval import figures, tables
        from eval.score import read_scores
        from eval.significance import compare_runs

    scored = [read_scores(run) for run in runs]
    names = [run.name for run in scored]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"two runs are called {min(twice)!r}; give each its name with `score --name`"
        )
    full = full or names[-1]
    if full not in names:
        raise UserError(f"--full {full!r} is none of the runs: {', '.join(names)}")
    measured = dict.fromkeys(c for run in scored for c in run.per_study.columns)
    tested = [c for c in measured if c != "study_id" and not c.startswith("counts/")]
    compared = compare_runs(
        {run.name: run.per_study for run in scored}, full, tested, resamples=resamples
    )
    files = tables.write_tables(
        tables.paper_tables(
            scored,
            corpus=corpus,
            full=full,
            compared=compared,
            external=[read_scores(run) for run in external or ()],
        ),
        out,
    )
    files += figures.write_figures(scored, out)
    console = Console()
    if compared:
        files.append(out / "significance.csv")
        tables.significance_frame(compared).to_csv(files[-1], index=False)
        console.print(tables.significance_table(compared, full))
    if claims:
        checked = claiming.check_claims([r for r in scored if r.name == full], corpus=corpus)
        files.append(out / "claims.csv")
        tables.write_rows(checked, files[-1])
        console.print(claiming.claims_table(checked))
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)


def cases(
    predictions: PredictionsFile,
    dataset: Dataset,
    out: Annotated[
        Path, typer.Option(metavar="HTML", help="Write the sheet here.", show_default=False)
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="The folder at which image paths start. Without it: the dataset's own reduced "
            "images.",
        ),
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="This study; may be given again.", show_default=False),
    ] = None,
    first: Annotated[int, typer.Option(metavar="N", min=1, help="How many, without --study.")] = 12,
    split: Split = None,
    section: SectionName = "findings",
    frame: FrameName = None,
    banks: BankFolder = None,
) -> None:
    """Write a case sheet: images with true and predicted boxes, both reports, the reasoning.

    One HTML file with its images in it. It holds reports: their licence is its own.

    For example:

    - `cot-builder cases out/predictions out/mimic --root /data/physionet --out cases.html`
    """  # fmt: skip
    with extra("eval", "cases"):
        from cot_builder.decompose import Decomposer
        from cot_builder.doctor import image_files
        from eval.cases import case_sheet
        from eval.records import read_pairs
        from knowledge_banks import load_banks

    files = image_files(dataset, root)
    if files is None:
        raise UserError(f"{dataset} has no reduced images: --root says where image paths start")
    pairs = read_pairs(predictions, dataset, split=split, section=section, frame=frame).pairs
    chosen = [p for p in pairs if p.study_id in study] if study else pairs[:first]
    if study and (lost := set(study) - {p.study_id for p in chosen}):
        raise UserError(f"--study {min(lost)}: no such study with a prediction in {dataset}")
    title = f"{predictions.name}: {len(chosen)} of {len(pairs):,} studies"
    sheet = case_sheet(chosen, Decomposer(load_banks(banks)), files, title=title)
    try:
        out.write_text(sheet, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    Console().print(f"{len(chosen)} cases: {out}", highlight=False, soft_wrap=True)


def _known(name: str, names: object, option: str) -> None:
    assert isinstance(names, dict)
    if name not in names:
        raise UserError(f"{option} {name!r}: expected one of {', '.join(names)}")
