"""Recipes: what is shipped, what may be changed, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cot_builder.errors import UserError
from training.recipe import Recipe, load_recipe, names, read_recipe


@pytest.mark.parametrize("name", names())
def test_shipped_recipes_are_read_and_read_back(name: str) -> None:
    recipe = load_recipe(name)
    assert read_recipe(recipe.to_row()) == recipe


def test_the_paper_s_settings() -> None:
    recipe = load_recipe("paper")
    assert recipe == Recipe(), "what a recipe leaves out is the paper's"
    mcl, svr, adapter = recipe.mcl, recipe.svr, recipe.adapter
    assert (mcl.learning_rate, mcl.epochs, mcl.batch_size, mcl.schedule) == (1e-4, 2, 1, "cosine")
    assert (svr.generations, svr.temperature, svr.learning_rate) == (8, 1.0, 1e-6)
    assert (svr.beta, svr.completion, svr.epochs, svr.reward) == (0.04, 256, 4, "paper")
    assert (adapter.rank, adapter.epochs, adapter.trainable) == (8, 2, ("adapter",))


def test_changes() -> None:
    changes = ["svr.generations=4", "svr.reward=set", "mcl.epochs=3", "mcl.limit=8",
               'adapter.trainable=["vision", "adapter"]']  # fmt: skip
    recipe = load_recipe("paper", changes)
    assert (recipe.svr.generations, recipe.svr.reward, recipe.mcl.epochs) == (4, "set", 3.0)
    assert recipe.adapter.trainable == ("vision", "adapter")
    assert load_recipe("paper", [*changes, "mcl.limit=none"]).mcl.limit is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("svr.generation=4", "did you mean generations?"),
        ("srv.generations=4", "did you mean svr?"),
        ("svr.generations=4.5", r"\[svr\] generations = 4.5: expected int"),
        ("svr.generations=true", "expected int"),
        ("svr.epochs=many", "expected float"),
        ("svr.batch_size=0", "at least 1"),
        ("svr.beta=-1", "at least 0"),
        ("model.dtype=float64", "expected float32, bfloat16, float16"),
        ("mcl.trainable=[]", "nothing would learn"),
        ('mcl.trainable=["adapter"]', "'adapter' is unknown; expected vision, projector, language"),
        ("mcl.trainable=vision", "a list of names"),
        ('adapter.trainable=["language", "adapter"]', "language weights or an adapter"),
        ("generations=4", "TABLE.KEY=VALUE"),
        ("svr.generations", "TABLE.KEY=VALUE"),
    ],
)
def test_changes_that_are_refused(change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("paper", [change])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[svr", "cannot be read"),
        ("svr = 3", "expected a table"),
        ("[svr]\nbeta = 'x'", r"mine.toml: \[svr\] beta"),
    ],
)
def test_files_that_are_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(UserError, match=said):
        load_recipe(str(tmp_path / "mine.toml"))


def test_no_such_recipe() -> None:
    with pytest.raises(UserError, match="paper, set, smoke, visual_rft"):
        load_recipe("papier")
