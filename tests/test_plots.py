"""The pictures of `stats --plots`, read off their axes."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from cot_builder.pipeline import build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from eval.dataset_statistics import DatasetStatistics, dataset_statistics
from eval.plots import PLOTS
from knowledge_banks import load_banks


@pytest.fixture(scope="module", params=[1, 14])
def statistics(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DatasetStatistics:
    out = tmp_path_factory.mktemp("built") / "demo"
    release = SourceOptions(banks=load_banks(), limit=request.param)
    build(BuildOptions(source="demo", release=release, out=out, workers=1))
    return dataset_statistics(out)


@pytest.mark.parametrize("name", PLOTS)
def test_no_axis_says_the_same_twice(statistics: DatasetStatistics, name: str) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    PLOTS[name](axes, statistics)
    figure.canvas.draw()
    for axis in (axes.xaxis, axes.yaxis):
        told = [label.get_text() for label in axis.get_ticklabels() if label.get_text()]
        assert len(told) == len({*told}), told


def test_bars_of_length_hold_every_study(statistics: DatasetStatistics) -> None:
    axes = Figure().add_subplot()
    PLOTS["length"](axes, statistics)
    bars = [bar for bar in axes.patches if bar.get_height()]
    assert sum(bar.get_height() for bar in bars) == statistics.total
    assert len({round(bar.get_width(), 6) for bar in bars}) == 1
    last = max(bars, key=lambda bar: bar.get_x())
    assert f"all of {last.get_x() + 0.5:.0f} words or more" in axes.get_title()
    assert last.get_height() == sum(words > last.get_x() for words in statistics.words)
