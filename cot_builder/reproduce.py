"""A plan file to the commands that carry it out: build, check, publish, train, predict, score.

Each step is a command of `cot-builder` as a person would type it, with a folder of its own below
the run's; `steps/` keeps a record of each that ended well. A step whose record fits is not run
again, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder import __version__
from cot_builder.dataset import MANIFEST, write_whole
from cot_builder.errors import UserError
from cot_builder.records import Row

STAGES: Final = ("mcl", "svr", "adapter")
STEPS: Final = "steps"
LOGS: Final = "logs"
# Commands whose options a plan may give under their own names.
TABLES: Final = ("publish", "train", "predict", "score", "compare", "cases")
# Commands that go on with what a run that was cut off left.
_RESUMES: Final = ("build", "train", "predict")
_KEYS: Final = {
    "name": str, "recipe": str, "seeds": list, "test": str, "reports": str, "chains": list,
    "external": dict, "dataset": list, "model": list, **dict.fromkeys(TABLES, dict),
}  # fmt: skip
_OPTIONAL: Final = {*TABLES, "seeds", "recipe", "test", "external"}


class External(NamedTuple):
    """Reports of elsewhere, on which the full model is tested too: Table 2."""

    dataset: str
    split: str


class Model(NamedTuple):
    """A row of the tables: its name, its stages, and what differs in the recipe of the last."""

    name: str
    stages: tuple[str, ...]
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to reproduce: `options` are those of the commands, under the commands' own names.

    The last of the models is the full one.
    """

    name: str
    recipe: str
    seeds: tuple[int, ...]
    test: str
    reports: str
    chains: tuple[str, ...]
    datasets: Mapping[str, Row]
    models: tuple[Model, ...]
    external: External | None
    options: Mapping[str, Row]


class Step(NamedTuple):
    """One command, the folder that it fills, and the steps that must have ended before it."""

    id: str
    command: tuple[str, ...]
    out: Path | None
    needs: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """How a step stands: `waiting`, `running`, `kept` from before, `done` or `failed`."""

    step: Step
    state: str
    seconds: float | None = None


# -- the plan file


def read_plan(path: Path) -> Plan:
    """Read a plan; UserError with file and key for whatever does not fit."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no plan at {path}; plans/ of the repository has some") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not a plan in TOML: {error}") from None
    _check_keys(table, path)
    datasets = {_named(row, path, "dataset"): row for row in table["dataset"]}
    external = table.get("external", {})
    named_by = {"reports": [table["reports"]], "chains": table["chains"]}
    if external:
        if set(external) != set(External._fields):
            raise UserError(
                f"{path}: [external]: expected the keys {', '.join(External._fields)}, got "
                f"{', '.join(external)}"
            )
        named_by["external"] = [external["dataset"]]
    for key, named in named_by.items():
        for name in named:
            if name not in datasets:
                raise UserError(
                    f'{path}: key "{key}": no [[dataset]] is named {name!r}; there are '
                    f"{', '.join(datasets)}"
                )
    return Plan(
        name=table["name"],
        recipe=table.get("recipe", "paper"),
        seeds=tuple(table.get("seeds", [0])),
        test=table.get("test", "test"),
        reports=table["reports"],
        chains=tuple(table["chains"]),
        datasets=datasets,
        models=tuple(_model(row, path) for row in table["model"]),
        external=External(**external) if external else None,
        options={key: table.get(key, {}) for key in TABLES},
    )


def _check_keys(table: Row, path: Path) -> None:
    for key, value in table.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; expected {', '.join(_KEYS)}"
            raise UserError(f"{path}: unknown key {key!r}{hint}")
        if not isinstance(value, _KEYS[key]):
            raise UserError(f'{path}: key "{key}": expected {_KEYS[key].__name__}, got {value!r}')
    if missing := [key for key in _KEYS if key not in table and key not in _OPTIONAL]:
        raise UserError(f'{path}: key "{missing[0]}" is missing')


def _named(row: Any, path: Path, table: str) -> str:
    if not (isinstance(row, dict) and isinstance(row.get("name"), str) and row["name"]):
        raise UserError(f'{path}: [[{table}]]: key "name" is missing')
    return str(row["name"])


def _model(row: Any, path: Path) -> Model:
    name = _named(row, path, "model")
    stages = tuple(row.get("stages", ()))
    if not stages or stages != tuple(stage for stage in STAGES if stage in stages):
        raise UserError(
            f'{path}: [[model]] {name!r}: key "stages": expected some of {", ".join(STAGES)}, in '
            f"this order, got {list(stages)!r}"
        )
    return Model(name, stages, tuple(row.get("set", ())))


# -- the steps


def steps(plan: Plan, out: Path) -> tuple[Step, ...]:
    """Return the steps of a plan in an order in which each can run.

    Models that share their first stages share the checkpoints of these.
    """
    found = {step.id: step for step in _steps(plan, out)}
    return tuple(found.values())


def _steps(plan: Plan, out: Path) -> Iterator[Step]:
    data = {name: out / "data" / name for name in plan.datasets}
    for name, row in plan.datasets.items():
        options = _flags({key: value for key, value in row.items() if key != "name"})
        yield Step(f"build {name}", ("build", *options, "--out", f"{data[name]}"), data[name])
    built = tuple(f"build {name}" for name in plan.datasets)
    yield Step("check", ("check", *map(str, data.values())), None, built)
    for name in plan.datasets:
        folder = out / "published" / name
        publish = ("publish", f"{data[name]}", "--version", "0.1.0", "--to", f"{folder}")
        options = _flags(plan.options["publish"])
        yield Step(f"publish {name} (dry)", (*publish, "--dry-run", *options), None, ("check",))
    scored: list[Step] = []
    external: list[Step] = []
    for seed in plan.seeds:
        for model in plan.models:
            yield from (ended := list(_model_steps(plan, model, seed, out, data)))
            scored += (step for step in ended if step.command[0] == "score")
        if plan.external:
            trained = next(step for step in reversed(ended) if step.command[0] == "train")
            name = f"{_run_name(plan, plan.models[-1], seed)} on {plan.external.dataset}"
            tested = (f"{data[plan.external.dataset]}", "--split", plan.external.split)
            yield from (ended := list(_test_steps(plan, name, trained, tested, out)))
            external += (step for step in ended if step.command[0] == "score")
    flags = _flags({**plan.options["compare"], "external": [step.out for step in external]})
    command = ("compare", *(f"{step.out}" for step in scored), *flags)
    needs = tuple(step.id for step in (*scored, *external))
    yield Step("compare", (*command, "--out", f"{out / 'tables'}"), out / "tables", needs)


def _model_steps(
    plan: Plan, model: Model, seed: int, out: Path, data: Mapping[str, Path]
) -> Iterator[Step]:
    trained: Step | None = None
    command: tuple[str, ...]
    for number, stage in enumerate(model.stages, 1):
        last = number == len(model.stages)
        changes = (f"run.seed={seed}", *(model.changes if last else ()))
        path = "-".join(model.stages[:number])
        label = f"{model.name} ({path})" if last and model.changes else path
        id_ = f"train {label}, seed {seed}"
        folder = out / "train" / _plain(f"{label} {seed}")
        names = [plan.reports] if stage == "adapter" else plan.chains
        command = ("train", stage, "--recipe", plan.recipe, *_flags(plan.options["train"]))
        datasets = _flags({"dataset": [data[name] for name in names], "set": list(changes)})
        base = ("--base", _checkpoint(trained)) if trained else ()
        needs = trained.id if trained else "check"
        trained = Step(id_, (*command, *datasets, *base, "--out", f"{folder}"), folder, (needs,))
        yield trained
    assert trained
    tested = (f"{data[plan.reports]}", "--split", plan.test)
    yield from _test_steps(plan, _run_name(plan, model, seed), trained, tested, out)


def _run_name(plan: Plan, model: Model, seed: int) -> str:
    return f"{model.name}, seed {seed}" if len(plan.seeds) > 1 else model.name


def _checkpoint(trained: Step) -> str:
    _, stage, *_ = trained.command
    return f"{trained.out}/{stage}"


def _test_steps(
    plan: Plan, name: str, trained: Step, tested: tuple[str, ...], out: Path
) -> Iterator[Step]:
    """Yield the steps that test a model on a dataset and split, `tested`."""
    predicted, score = f"predict {name}", f"score {name}"
    folder, scores = (out / verb / _plain(name) for verb in ("predict", "score"))
    command: tuple[str, ...]
    command = ("predict", _checkpoint(trained), *tested, *_flags(plan.options["predict"]))
    yield Step(predicted, (*command, "--out", f"{folder}"), folder, (trained.id,))
    command = ("score", f"{folder}", *tested, *_flags(plan.options["score"]), "--name", name)
    yield Step(score, (*command, "--out", f"{scores}"), scores, (predicted,))
    sheet = out / "cases" / f"{_plain(name)}.html"
    command = ("cases", f"{folder}", *tested, *_flags(plan.options["cases"]), "--out", f"{sheet}")
    yield Step(f"cases {name}", command, sheet, (predicted,))


def _plain(words: str) -> str:
    """Return words as the name of a file or folder.

    >>> _plain("w/o MCL & SVR, seed 0")
    'w-o-mcl-svr-seed-0'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in words.lower()).split())


def _flags(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Write options as flags of a command: true is the flag alone, a list the flag for each."""
    flags: list[str] = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not False:
                flags += [f"--{name}"] if one is True else [f"--{name}", f"{one}"]
    return tuple(flags)


# -- the run


def run(
    plan: str,
    ordered: Sequence[Step],
    out: Path,
    *,
    redo: Sequence[str] = (),
    show: Callable[[tuple[Outcome, ...]], None] = lambda _: None,
) -> tuple[Outcome, ...]:
    """Carry out the steps of the plan named `plan`; the manifest is written last.

    Returns how each step ended.

    What ended well before, with the same command, is kept. `redo` names steps to run again, and
    with them run all that need them. A step that fails ends the run: UserError with its log.
    """
    again = _to_redo(ordered, redo)
    for folder in (out / STEPS, out / LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    outcomes = [_stands(step, out, again) for step in ordered]
    for place, outcome in enumerate(outcomes):
        if outcome.state == "kept":
            continue
        outcomes[place] = outcome._replace(state="running")
        show(tuple(outcomes))
        outcomes[place] = _carried_out(outcome.step, out)
        show(tuple(outcomes))
        if outcomes[place].state == "failed":
            log = _log(out, outcome.step)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise UserError(
                f"step {outcome.step.id!r} failed: {lines[-1] if lines else 'it said nothing'} "
                f"(the whole of it: {log}). The same command goes on from here"
            )
    _write_manifest(plan, outcomes, out)
    return tuple(outcomes)


def _to_redo(ordered: Sequence[Step], redo: Sequence[str]) -> set[str]:
    known = [step.id for step in ordered]
    for name in redo:
        if name not in known:
            raise UserError(f"--redo {name!r}: no such step; there are {', '.join(known)}")
    again = set(redo)
    for step in ordered:
        if again & set(step.needs):
            again.add(step.id)
    return again


def _stands(step: Step, out: Path, again: set[str]) -> Outcome:
    """Tell whether a step has to run; one of another command stands in the way until redone."""
    record = _record(out, step)
    if step.id in again:
        record.unlink(missing_ok=True)
        if step.out and step.out.is_dir():
            shutil.rmtree(step.out)
        return Outcome(step, "waiting")
    try:
        row = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return Outcome(step, "waiting")
    if row["command"] != list(step.command):
        raise UserError(
            f"the plan has changed since step {step.id!r} ran: then `cot-builder "
            f"{shlex.join(row['command'])}`, now `cot-builder {shlex.join(step.command)}`. "
            f"--redo {shlex.quote(step.id)} runs it again, with all that need it"
        )
    return Outcome(
        step, "kept" if step.out is None or step.out.exists() else "waiting", row["seconds"]
    )


def _carried_out(step: Step, out: Path) -> Outcome:
    started = time.monotonic()
    if step.out:
        step.out.parent.mkdir(parents=True, exist_ok=True)
    # What is there of a step without a record was cut off.
    cut_off = step.command[0] in _RESUMES and step.out and step.out.exists()
    resume = ("--resume",) if cut_off else ()
    program = [sys.executable, "-c", "from cot_builder.cli import main; main()"]
    with _log(out, step).open("wb") as log:
        code = subprocess.run(
            [*program, *step.command, *resume],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
            env={**os.environ, "COLUMNS": "120"},
        ).returncode  # fmt: skip
    seconds = round(time.monotonic() - started, 1)
    if code:
        return Outcome(step, "failed", seconds)
    row = {"command": list(step.command), "seconds": seconds, "version": __version__}
    write_whole(_record(out, step), json.dumps(row, indent=1).encode(), scratch=out / STEPS)
    return Outcome(step, "done", seconds)


def _record(out: Path, step: Step) -> Path:
    return out / STEPS / f"{_plain(step.id)}.json"


def _log(out: Path, step: Step) -> Path:
    return out / LOGS / f"{_plain(step.id)}.log"


def _write_manifest(plan: str, outcomes: Sequence[Outcome], out: Path) -> None:
    row = {
        "tool": {"name": "cot-builder", "version": __version__},
        "plan": plan,
        "steps": {
            outcome.step.id: {
                "command": shlex.join(["cot-builder", *outcome.step.command]),
                "seconds": outcome.seconds,
            }
            for outcome in outcomes
        },
    }
    write_whole(out / MANIFEST, json.dumps(row, indent=1).encode(), scratch=out / STEPS)
