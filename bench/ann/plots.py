"""Plots of a data set's results, as PNG."""

from pathlib import Path
from statistics import median

from goals import last_build
from phases import WORKERS

# What lies below is of no use.
LEAST_RECALL = 0.7


def search_name(name):
    return f"results-{name}-search.png"


def build_name(name):
    return f"results-{name}-build.png"


def draw(results, folder, name):
    """Draws what was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if "search" in results.runs:
        figure = draw_search(pyplot, results, name)
        figure.savefig(Path(folder) / search_name(name), dpi=110)
    if "build" in results.runs:
        figure = draw_build(pyplot, results)
        figure.savefig(Path(folder) / build_name(name), dpi=110)
    pyplot.close("all")


def points_of(found):
    """(recall, queries per second) of the curve and of the targets, in the settings' order."""
    points = {point["setting"]: (point["recall"], point["qps"]) for point in found["curve"]}
    for point in filter(None, found["targets"].values()):
        points[point["setting"]] = (point["recall"], median(point["qps"]))
    return [points[setting] for setting in sorted(points) if points[setting][0] >= LEAST_RECALL]


def draw_search(pyplot, results, name):
    """Queries per second over recall, one client."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for method, content in results.methods.items():
        points = points_of(content["search"]) if "search" in content else []
        if points:
            style = "--" if method.startswith("FAISS") else "-"
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=method)
    axes.set_yscale("log")
    axes.set_xlim(LEAST_RECALL, 1.002)
    axes.set_xlabel("recall@10")
    axes.set_ylabel("queries per second, one client")
    axes.set_title(f"{name}: {results.content['rows']:,} rows, {results.content['dimensions']} dimensions")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    return figure


def draw_build(pyplot, results):
    """Bars of build time, with one process and with two, and of size."""
    made = {name: method["build"] for name, method in results.methods.items() if "build" in method}
    figure, (times, sizes) = pyplot.subplots(1, 2, figsize=(10, 1.5 + 0.6 * len(made)), layout="constrained")
    names = list(made)
    height = 0.8 / len(WORKERS)
    for place, workers in enumerate(WORKERS):
        rows = [row for row, name in enumerate(names) if made[name].get(str(workers))]
        builds = [made[names[row]][str(workers)] for row in rows]
        seconds = [median(build["seconds"] for build in of_one) for of_one in builds]
        heights = [row + height * (place - 0.5) for row in rows]
        label = f"{workers} process{'es' if workers > 1 else ''}"
        bars = times.barh(heights, seconds, height, label=label)
        times.bar_label(bars, [f"{value:,.1f}" for value in seconds], padding=3)
    times.set_xscale("log")
    times.set_xlabel("seconds to build")
    times.legend()
    bars = sizes.barh(names, [last_build(made[name])["size"] / 2**20 for name in names])
    sizes.bar_label(bars, fmt="{:,.0f}", padding=3)
    sizes.set_xlabel("MiB on disk")
    times.set_yticks(range(len(names)), names)
    sizes.set_yticks(range(len(names)), [])
    for axes in (times, sizes):
        axes.invert_yaxis()
        axes.margins(x=0.15)
    return figure
