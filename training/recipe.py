"""Recipes: every setting of a run, in TOML; what a file leaves out is the paper's.

A recipe is a file of `training/recipes/` by its name, or one of your own by its path. Keys that are
not there, and values of another type, are errors that name the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_type_hints

from cot_builder.errors import UserError

FOLDER: Final = Path(__file__).with_name("recipes")
STAGES: Final = ("mcl", "svr", "adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is trained: a folder, a model's name on the Hub, or `tiny-qwen2_vl` and its like.

    Weights are held in `dtype`; `autocast` computes in another. bfloat16 weights would lose steps
    of 1e-6, so that they stay in float32. A frame and pixel budget given here replace the
    dataset's.
    """

    name: str = "Qwen/Qwen2-VL-2B-Instruct"
    revision: str | None = None
    dtype: str = "float32"
    autocast: str = "bf16"
    attention: str = "sdpa"
    frame: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How a stage learns; `limit` and `max_steps` cut it short.

    A batch is `batch_size` examples on each process, `accumulation` times. `trainable` names the
    parts that learn: vision, projector, language, and adapter for LoRA on the language model.
    """

    learning_rate: float
    epochs: float
    batch_size: int = 1
    accumulation: int = 1
    schedule: str = "cosine"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_steps: int | None = None
    limit: int | None = None
    trainable: tuple[str, ...] = ("vision", "projector", "language")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mcl(Stage):
    """Medical concept learning, the paper's section 4.2."""

    learning_rate: float = 1e-4
    epochs: float = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Svr(Stage):
    """Spatially verifiable reinforcement: the paper's, with what Visual-RFT's settings amount to.

    `batch_size` counts prompts for each process and step; each gets `generations` answers.
    `exact_kl` takes the gradient of the KL divergence itself, Eq. 11 to the letter; without it,
    that of its estimate on the samples, as Visual-RFT does.
    """

    learning_rate: float = 1e-6
    epochs: float = 4
    schedule: str = "linear"
    reward: str = "paper"
    generations: int = 8
    temperature: float = 1.0
    beta: float = 0.04
    completion: int = 256
    exact_kl: bool = False
    use_vllm: bool = False
    vllm_mode: str = "colocate"
    vllm_memory: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Stage):
    """The downstream adapter; alpha, dropout and learning rate are ours, the paper has none."""

    learning_rate: float = 1e-4
    epochs: float = 2
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    trainable: tuple[str, ...] = ("adapter",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What surrounds the stages: seeds, logs, checkpoints, samples; steps are optimizer steps."""

    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    keep: int = 1
    sample_every: int = 500
    samples: int = 4
    report_to: tuple[str, ...] = ("tensorboard",)
    recompute_activations: bool = True
    loader_workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings of a run; each stage also trains alone."""

    model: Model = field(default_factory=Model)
    mcl: Mcl = field(default_factory=Mcl)
    svr: Svr = field(default_factory=Svr)
    adapter: Adapter = field(default_factory=Adapter)
    run: Run = field(default_factory=Run)

    def stage(self, name: str) -> Stage:
        """Return the settings of one stage."""
        settings: Stage = getattr(self, name)
        return settings

    def to_row(self) -> dict[str, Any]:
        """Return the recipe as a run folder and checkpoints keep it, every value spelt out."""
        return {
            table: {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(getattr(self, table)).items()
            }
            for table in _TABLES
        }


_TABLES: Final[Mapping[str, type[Any]]] = {
    "model": Model, "mcl": Mcl, "svr": Svr, "adapter": Adapter, "run": Run,
}  # fmt: skip
# The values that a key may have, where these are few.
_CHOICES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("model", "dtype"): ("float32", "bfloat16", "float16"),
    ("model", "autocast"): ("none", "bf16", "fp16"),
    ("model", "attention"): ("sdpa", "eager", "flash_attention_2"),
    ("svr", "vllm_mode"): ("colocate", "server"),
}
_TRAINABLE: Final = {
    "mcl": ("vision", "projector", "language"),
    "svr": ("vision", "projector", "language"),
    "adapter": ("vision", "projector", "language", "adapter"),
}
_AT_LEAST_ONE: Final = ("batch_size", "accumulation", "completion", "rank", "log_every", "keep")


def names() -> tuple[str, ...]:
    """Return the names of the shipped recipes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_recipe(name: str, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe by its name or path, with changes such as `svr.generations=4`.

    Raises UserError that names the file, table and key.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no recipe {name!r}; the recipes are {', '.join(names())}, or the path of a .toml file"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    for change in changes:
        table, key, value = _change(change)
        tables.setdefault(table, {})[key] = value
    return read_recipe(tables, where=path.name)


def read_recipe(tables: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Make a recipe of its tables; UserError names the key that is not as it should be."""
    _known(tables, _TABLES, f"{where}: table")
    made = {name: _table(name, _TABLES[name], rows, where) for name, rows in tables.items()}
    recipe = Recipe(**made)
    _check(recipe, where)
    return recipe


def _table(name: str, kind: type[Any], rows: Any, where: str) -> Any:
    if not isinstance(rows, Mapping):
        raise UserError(f"{where}: [{name}] is {rows!r:.40}; expected a table of settings")
    types = get_type_hints(kind)
    _known(rows, types, f"{where}: [{name}]")
    return kind(
        **{
            key: _typed(value, types[key], f"{where}: [{name}] {key}")
            for key, value in rows.items()
        }
    )


def _known(given: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{where} {key!r} is unknown; expected {', '.join(known)}{hint}")


def _typed(value: Any, kind: Any, where: str) -> Any:
    """Return a value as its key's type wants it: whole numbers are numbers, lists are tuples."""
    words = str(getattr(kind, "__name__", kind))
    optional = "None" in str(kind)
    texts = "tuple" in str(kind)
    if value is None and optional:
        return None
    if texts and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(value)
    wanted = next((k for k in (bool, int, float, str) if k.__name__ in str(kind)), str)
    if not texts and isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool):
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise UserError(f"{where} = {value!r}: expected {'a list of names' if texts else words}")


def _change(change: str) -> tuple[str, str, Any]:
    name, equals, text = change.partition("=")
    table, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise UserError(f"--set {change!r}: expected TABLE.KEY=VALUE, as in svr.generations=4")
    try:
        return table, key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:  # a word without its quotation marks
        return table, key, None if text.strip() == "none" else text.strip()


def _check(recipe: Recipe, where: str) -> None:
    rows = recipe.to_row()
    for (table, key), values in _CHOICES.items():
        if rows[table][key] not in values:
            listed = ", ".join(values)
            raise UserError(f"{where}: [{table}] {key} = {rows[table][key]!r}: expected {listed}")
    for table, settings in rows.items():
        for key, value in settings.items():
            low = 1 if key in _AT_LEAST_ONE or key in ("max_steps", "limit") else 0
            if isinstance(value, int | float) and value < low:
                raise UserError(f"{where}: [{table}] {key} = {value}: expected at least {low}")
    for table, parts in _TRAINABLE.items():
        if not rows[table]["trainable"]:
            raise UserError(f"{where}: [{table}] trainable is empty: nothing would learn")
        _known(rows[table]["trainable"], parts, f"{where}: [{table}] trainable:")
    if "language" in recipe.adapter.trainable and "adapter" in recipe.adapter.trainable:
        raise UserError(f"{where}: [adapter] trainable: language weights or an adapter on them")
