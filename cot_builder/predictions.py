"""Predictions: a model's reports, with the reasoning and boxes of their sentences.

A predictions folder holds `predictions.jsonl`, a line a study, and last `manifest.json`:
checkpoint, prompt, decoding settings, counts. Reports of other people's models are read from any
JSON Lines or CSV file with `study_id` and `report`.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.boxes import XYXY, Frame, Size
from cot_builder.dataset import MANIFEST, write_whole
from cot_builder.errors import UserError
from cot_builder.records import Row

LINES: Final = "predictions.jsonl"
SETTINGS: Final = "settings.json"
_OWN: Final = "original_pixels"


class Located(NamedTuple):
    """A sentence of a predicted report, or a phrase asked for, with what the model says of it.

    `raw` is the model's answer; `think` and `boxes` are read off it and None where it could not be
    read, for the reason in `problem`. Boxes are xyxy in the original image's pixels; none at all
    says that there is nothing to see. `start` and `end` place a sentence in the report, `image_id`
    names the image that a phrase was looked for in.
    """

    text: str
    start: int = 0
    end: int = 0
    raw: str = ""
    think: str | None = None
    boxes: tuple[XYXY, ...] | None = None
    confidences: tuple[float, ...] = ()
    problem: str | None = None
    image_id: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any], frame: Frame | None, size: Size | None) -> Located:
        """Read one back; a `frame` that is not the original's pixels is converted."""
        boxes = row.get("boxes")
        if boxes is not None:
            boxes = tuple(_box(box, frame, size) for box in boxes)
        known = {name: row[name] for name in cls._fields if row.get(name) is not None}
        return cls(**{**known, "boxes": boxes, "confidences": tuple(known.get("confidences", ()))})


class Prediction(NamedTuple):
    """What a model says of one study: its report, or the `error` for which there is none.

    `phrases` are the dataset's phrases, which the model was asked to find.
    """

    study_id: str
    report: str | None
    image_id: str | None = None
    image_path: str | None = None
    width: int | None = None
    height: int | None = None
    sentences: tuple[Located, ...] = ()
    phrases: tuple[Located, ...] = ()
    error: str | None = None

    def to_row(self) -> Row:
        """Return the prediction as a line of `predictions.jsonl`."""
        return {
            **self._asdict(),
            "sentences": [sentence._asdict() for sentence in self.sentences],
            "phrases": [phrase._asdict() for phrase in self.phrases],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], frame: Frame | None = None) -> Prediction:
        """Read a prediction back; ValueError, KeyError or TypeError for what is none.

        `frame` is that of the boxes, where it is not the original's pixels; a line's own `frame`
        wins.
        """
        if named := row.get("frame"):
            frame = None if named == _OWN else Frame(named)
        size = Size(row["width"], row["height"]) if row.get("width") and row.get("height") else None
        report = row.get("report")
        if report is not None and not isinstance(report, str):
            raise TypeError(f"report: expected a text, got {report!r:.60}")
        return cls(
            study_id=_study_id(row["study_id"]),
            report=report,
            **{name: row.get(name) for name in ("image_id", "image_path", "width", "height")},
            sentences=tuple(Located.from_row(s, frame, size) for s in row.get("sentences") or ()),
            phrases=tuple(Located.from_row(s, frame, size) for s in row.get("phrases") or ()),
            error=row.get("error"),
        )


class Predictions(NamedTuple):
    """Predictions by study id, in the order of the file, and the manifest of their folder."""

    name: str
    by_study: dict[str, Prediction]
    manifest: Row | None = None


def read_predictions(path: Path, *, frame: str | None = None) -> Predictions:
    """Read a predictions folder, or a `.jsonl` or `.csv` file with `study_id` and `report`.

    UserError, naming file and line, for what cannot be read, for a study that comes twice, and for
    a folder without its manifest. `frame` names the frame of the boxes of a file that does not say.
    """
    manifest = None
    if path.is_dir():
        manifest = _manifest(path)
        file = path / LINES
    else:
        file = path
    by_study: dict[str, Prediction] = {}
    lines: dict[str, int] = {}
    for number, row in _rows(file):
        try:
            found = Prediction.from_row(row, Frame(frame) if frame else None)
            if found.report is None and found.error is None and "report" not in row:
                raise KeyError("report")
        except KeyError as error:
            raise UserError(
                f"{file}:{number}: no {error}: expected study_id and report, got "
                f"{', '.join(map(str, row)) or 'nothing'}"
            ) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{file}:{number}: not a prediction: {error}") from None
        if found.study_id in lines:
            raise UserError(
                f"{file}:{number}: study {found.study_id} stands in line {lines[found.study_id]} "
                "already; a study has one prediction, so take one of them out"
            )
        lines[found.study_id] = number
        by_study[found.study_id] = found
    if not by_study:
        raise UserError(f"{file} holds no prediction; expected lines with study_id and report")
    return Predictions(path.stem if path.is_file() else path.name, by_study, manifest)


# -- writing, so that a stopped run goes on


class Writer:
    """Appends to a predictions folder; `done` are the studies that an earlier run wrote.

    Settings that decide the predictions are kept in the folder: a run with others is refused. A
    study that had an error is tried again.
    """

    def __init__(self, folder: Path, settings: Row, *, resume: bool) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self._file = folder / LINES
        folder.mkdir(parents=True, exist_ok=True)
        kept = list(self._kept()) if resume else []
        if not resume and (self._file.exists() or (folder / MANIFEST).exists()):
            raise UserError(f"{folder} holds predictions already; --resume goes on with them")
        (folder / MANIFEST).unlink(missing_ok=True)
        write_whole(folder / SETTINGS, json.dumps(self.settings, indent=1).encode(), scratch=folder)
        self.counts: Counter[str] = Counter()
        self.done = frozenset(row["study_id"] for row in kept if row["error"] is None)
        good = [json.dumps(row, ensure_ascii=False) for row in kept if row["study_id"] in self.done]
        text = "".join(f"{line}\n" for line in good)
        write_whole(self._file, text.encode("utf-8", "backslashreplace"), scratch=folder)
        for row in kept:
            if row["study_id"] in self.done:
                self._count(Prediction.from_row(row))
        self._stream = self._file.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, prediction: Prediction) -> None:
        """Append one prediction; it is on the disk when this returns."""
        self._stream.write(json.dumps(prediction.to_row(), ensure_ascii=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._count(prediction)

    def finish(self) -> Row:
        """Write the manifest: the folder is complete."""
        self._stream.close()
        manifest = {**self.settings, "counts": dict(sorted(self.counts.items()))}
        content = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
        write_whole(self.folder / MANIFEST, content, scratch=self.folder)
        (self.folder / SETTINGS).unlink()
        return manifest

    def _count(self, prediction: Prediction) -> None:
        self.counts["studies"] += 1
        self.counts["errors"] += prediction.error is not None
        self.counts["empty_reports"] += prediction.error is None and not prediction.report
        for located in (*prediction.sentences, *prediction.phrases):
            self.counts["answers"] += 1
            self.counts["unreadable_answers"] += located.problem is not None

    def _kept(self) -> Iterator[Row]:
        for name in (SETTINGS, MANIFEST):
            if (path := self.folder / name).exists():
                before = json.loads(path.read_text(encoding="utf-8"))
                before.pop("counts", None)
                if differing := [
                    key for key in self.settings if before.get(key) != self.settings[key]
                ]:
                    raise UserError(
                        f"{self.folder} was begun with another {', '.join(differing)}: a "
                        "predictions folder has one set of settings; name another --out"
                    )
                break
        if self._file.exists():
            for line in self._file.read_bytes().split(b"\n"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # the last line of a run that was killed


def _manifest(folder: Path) -> Row:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST}: it is not complete; run `cot-builder predict` again with "
            f"--resume, or name {folder / LINES} to read what is there"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / MANIFEST} is not JSON: {error}") from None


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        if file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream)
                for row in reader:
                    yield reader.line_num, row
            return
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{file}:{number}: expected an object, got {row!r:.60}")
                yield number, row
    except OSError as error:
        raise UserError(f"cannot read predictions {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8: {error}") from None
    except (json.JSONDecodeError, RecursionError, csv.Error) as error:
        raise UserError(f"{file} is neither JSON Lines (.jsonl) nor CSV (.csv): {error}") from None


def _study_id(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as pandas writes a column of whole numbers with a gap
    if not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"study_id: expected a text or a whole number, got {value!r}")
    return str(value).strip()


def _box(box: Any, frame: Frame | None, size: Size | None) -> XYXY:
    x1, y1, x2, y2 = (float(number) for number in box)
    if frame is None:
        return x1, y1, x2, y2
    if size is None:
        raise ValueError(f"width and height of the image are missing: boxes are in {frame.name}")
    return frame.back((x1, y1, x2, y2), size)
