"""Plans become commands in an order in which they can run; what ended well is not run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cot_builder.errors import UserError
from cot_builder.reproduce import Outcome, Plan, read_plan, run, steps

ROOT = Path(__file__).resolve().parents[1]
PLAN = """
name = "two"
recipe = "smoke"
seeds = [0, 7]
reports = "demo"
chains = ["demo"]
[[dataset]]
name = "demo"
source = "demo"
image-scale = 0.5
check-images = true
[[model]]
name = "MCL"
stages = ["mcl", "adapter"]
[[model]]
name = "MCL + SVR"
stages = ["mcl", "svr", "adapter"]
"""


def plan(folder: Path, text: str = PLAN) -> Plan:
    path = folder / "plan.toml"
    path.write_text(text)
    return read_plan(path)


def test_models_share_the_stages_that_they_have_in_common(tmp_path: Path) -> None:
    ordered = steps(plan(tmp_path), tmp_path / "out")
    ids = [step.id for step in ordered]
    assert len(ids) == len(set(ids))
    assert [id_ for id_ in ids if id_.startswith("train") and "seed 7" in id_] == [
        "train mcl, seed 7",
        "train mcl-adapter, seed 7",
        "train mcl-svr, seed 7",
        "train mcl-svr-adapter, seed 7",
    ]
    assert len({step.out for step in ordered if step.out}) == sum(bool(s.out) for s in ordered)


def test_every_step_stands_after_those_that_it_needs(tmp_path: Path) -> None:
    done: set[str] = set()
    for step in steps(plan(tmp_path), tmp_path / "out"):
        assert set(step.needs) <= done, step.id
        done.add(step.id)


def test_what_differs_in_a_recipe_differs_in_the_last_stage_alone(tmp_path: Path) -> None:
    text = PLAN.replace('name = "MCL + SVR"', 'name = "P"\nset = ["adapter.rank=4"]')
    trained = [s for s in steps(plan(tmp_path, text), tmp_path) if s.command[0] == "train"]
    assert [step.id for step in trained if "adapter.rank=4" in step.command] == [
        "train P (mcl-svr-adapter), seed 0",
        "train P (mcl-svr-adapter), seed 7",
    ]


EXTERNAL = """
[external]
dataset = "demo"
split = "validation"
"""


def test_the_full_model_alone_is_tested_on_reports_of_elsewhere(tmp_path: Path) -> None:
    ordered = steps(plan(tmp_path, PLAN + EXTERNAL), tmp_path / "out")
    elsewhere = [step for step in ordered if "validation" in step.command]
    assert [step.id for step in elsewhere] == [
        f"{verb} MCL + SVR, seed {seed} on demo"
        for seed in (0, 7)
        for verb in ("predict", "score", "cases")
    ]
    compare = ordered[-1].command
    place = compare.index("--external")
    runs = [str(step.out) for step in ordered if step.id.startswith("score")]
    assert [*compare[1:place], *compare[place:-2]] == [
        *(run for run in runs if "on-demo" not in run),
        *(word for run in runs if "on-demo" in run for word in ("--external", run)),
    ]


def test_options_of_a_dataset_are_the_flags_of_its_build(tmp_path: Path) -> None:
    build = steps(plan(tmp_path), tmp_path / "out")[0]
    assert build.command == (
        "build", "--source", "demo", "--image-scale", "0.5", "--check-images",
        "--out", str(tmp_path / "out/data/demo"),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["smoke", "paper"])
def test_the_shipped_plans_are_sound(name: str, tmp_path: Path) -> None:
    read = read_plan(ROOT / f"plans/{name}.toml")
    ablations = {"w/o MCL & SVR", "w/o SVR", "w/o MCL", "BoxMed-RL"}
    assert ablations <= {model.name for model in read.models}
    assert steps(read, tmp_path)[-1].command[0] == "compare"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('reports = "demo"', 'reports = "mimic"', "no [[dataset]] is named 'mimic'"),
        ('reports = "demo"', "", '"reports" is missing'),
        ("seeds", "seed", "did you mean 'seeds'?"),
        ("seeds = [0, 7]", "seeds = 0", '"seeds": expected list'),
        ('stages = ["mcl", "adapter"]', 'stages = ["adapter", "mcl"]', "in this order"),
        ('stages = ["mcl", "adapter"]', 'stages = ["sft"]', "expected some of mcl, svr, adapter"),
        ('name = "MCL"', "", '[[model]]: key "name" is missing'),
        ('name = "two"', "name = two", "is not a plan in TOML"),
        ("[[dataset]]", '[external]\nsplit = "test"\n[[dataset]]', "expected the keys dataset"),
        (
            "[[dataset]]",
            f"{EXTERNAL.replace('demo', 'iu')}\n[[dataset]]",
            "no [[dataset]] is named",
        ),
    ],
)
def test_a_plan_that_does_not_fit_says_where(old: str, new: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        plan(tmp_path, PLAN.replace(old, new, 1))
    assert told in str(error.value)
    assert "plan.toml" in str(error.value)


def built(folder: Path, text: str = PLAN) -> tuple[Outcome, ...]:
    """Carry out a plan as far as its build and check."""
    return run("two", steps(plan(folder, text), folder / "out")[:2], folder / "out")


def test_a_step_that_ended_well_is_kept_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    assert [outcome.state for outcome in built(tmp_path)] == ["done", "done"]
    assert (tmp_path / "out/manifest.json").exists()
    assert [outcome.state for outcome in built(tmp_path)] == ["kept", "kept"]
    ordered = steps(plan(tmp_path), tmp_path / "out")[:2]
    again = run("two", ordered, tmp_path / "out", redo=["build demo"])
    assert [outcome.state for outcome in again] == ["done", "done"]
    with pytest.raises(UserError, match="the plan has changed since step 'build demo' ran"):
        built(tmp_path, PLAN.replace("0.5", "0.25"))
    with pytest.raises(UserError, match="no such step"):
        run("two", ordered, tmp_path / "out", redo=["bild"])


def test_a_step_that_fails_ends_the_run_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 'build demo' failed: .*nowhere"):
        built(tmp_path, PLAN.replace('source = "demo"', 'source = "nowhere"'))
    assert not (tmp_path / "out/manifest.json").exists()
