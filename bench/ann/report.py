"""The report of a data set: Markdown and plots, from its results."""

from pathlib import Path
from statistics import median

import goals
import plots
import writing
from goals import dig, last_build
from measuring import markdown_table, spread
from phases import FILTERS, MIDDLE, WORKERS
from search import MANY, TARGETS
from truth import NEIGHBOURS

MISSING = "–"


def number(value, digits=0):
    return MISSING if value is None else f"{value:,.{digits}f}"


def several(values, digits=0):
    """Median and range, or the one value that there is."""
    return spread(values, digits) if len(values) > 1 else number(values[0], digits)


def having(results, phase):
    """(name, result of the phase) of the methods that took part in it."""
    return [(name, method[phase]) for name, method in results.methods.items() if phase in method]


def goal_table(results):
    """A row for each goal that was measured, a column for each of faiss_ivf's methods."""
    methods = goals.ours(results.methods)
    columns = [goals.goals(results, method, "WordNet" in results.content["data"]) for method in methods]
    measured = [row for row in zip(*columns, strict=True) if any(goal.values for goal in row)]
    rows = [[row[0].text, *(goal.words() for goal in row)] for row in measured]
    return markdown_table([f"at recall@{NEIGHBOURS} = {MIDDLE}", *methods], rows)


def search_table(results, target):
    """Speed at a recall, one client and many."""
    header = ["method", "setting", "recall", "QPS", "p50 ms", "p95 ms"]
    header += [f"QPS, {MANY} clients", "p50 ms", "p95 ms"]
    rows = []
    for name, found in having(results, "search"):
        point = dig(found, "targets", target)
        if point is None:
            tried = target in found["targets"]
            rows.append([name, "does not reach it" if tried else "not measured", *[MISSING] * 7])
            continue
        row = [name, point["setting"], f"{point['recall']:.3f}", several(point["qps"])]
        row += [number(point["p50"], 2), number(point["p95"], 2)]
        many = point.get("many")
        row += [several(many["qps"]) if many else MISSING]
        row += [number(dig(many, key), 2) for key in ("p50", "p95")]
        rows.append(row)
    return markdown_table(header, rows)


def drift_of_machine(results):
    """What the first method's repetition at the end shows, in words."""
    parts = []
    for name, _ in having(results, "repeat"):
        before, after = (
            dig(results.methods, name, key, "targets", MIDDLE, "qps") for key in ("search", "repeat")
        )
        if before and after:
            parts.append(
                f"{name} again at the end: {median(after):,.0f} QPS at recall {MIDDLE}, "
                f"{median(after) / median(before):.2f} of its first measurement"
            )
    return parts


def build_table(results):
    header = ["build"]
    header += [f"seconds, {workers} process{'es' if workers > 1 else ''}" for workers in WORKERS]
    header += ["of one", "size in MiB", "peak private MB"]
    rows = []
    for name, builds in having(results, "build"):
        seconds = [[made["seconds"] for made in builds.get(str(workers), [])] for workers in WORKERS]
        last = last_build(builds)
        rows.append(
            [
                name,
                *(several(times, 1) if times else MISSING for times in seconds),
                f"{median(seconds[0]) / median(seconds[1]):.2f}" if all(seconds) else MISSING,
                number(last["size"] / 2**20),
                number(last["memory"] / 1e6),
            ]
        )
    return markdown_table(header, rows)


def write_table(results):
    header = ["rows per second"] + [form.words for form in writing.FORMS]
    header += ["WAL bytes per row", "with images of pages"]
    rows = []
    for name, found in having(results, "inserts"):
        rates = [several(found[form.name]["rates"], 0) for form in writing.FORMS]
        rows.append([name, *rates, number(found["one"]["wal"]), number(found["images"])])
    return markdown_table(header, rows)


def vacuum_table(results):
    rows = [
        [name, several(found["seconds"], 2), number(found["wal"])]
        for name, found in having(results, "vacuum")
    ]
    return markdown_table(["VACUUM", "seconds", "WAL bytes per deleted row"], rows)


def regained(again):
    """Cells of what `phases.regain` tells: setting, queries per second, 95th percentile."""
    if again is None:
        return ["none", MISSING, MISSING]
    return [again["setting"], number(median(again["qps"])), number(again["p95"], 2)]


def filter_table(results):
    header = ["filter", "rows that pass", "setting", "recall", f"setting for {MIDDLE}", "QPS", "p95 ms"]
    rows = []
    for percent in FILTERS:
        for name, found in having(results, "filters"):
            point = found[str(percent)]
            row = [name, f"{percent} %", point["setting"], f"{point['recall']:.3f}"]
            rows.append([*row, *regained(point["again"])])
    return markdown_table(header, rows)


def drift_table(results):
    header = [
        "table doubled",
        "setting",
        "recall",
        f"setting for {MIDDLE}",
        "QPS",
        "p95 ms",
        "rows per second of COPY",
    ]
    rows = [
        [name, found["setting"], f"{found['recall']:.3f}", *regained(found["again"]), number(found["copy"])]
        for name, found in having(results, "drift")
    ]
    return markdown_table(header, rows)


def cold_table(results):
    header = ["ms", "first query after a restart", "each of the next 19", "a new connection's first query"]
    rows = [
        [name, *(spread(found[key], 1) for key in ("first", "following", "connection"))]
        for name, found in having(results, "cold")
    ]
    return markdown_table(header, rows)


def memory_table(results):
    rows = [
        [name, *(number(found[key] / 1e6, 1) for key in ("before", "after"))]
        for name, found in having(results, "memory")
    ]
    return markdown_table(["private MB of a connection", "before its first query", "after all queries"], rows)


def cold_words(results):
    """Whether the page cache was empty after restarts, in words."""
    dropped = all(found["dropped"] for _, found in having(results, "cold"))
    return (
        "The system's page cache was emptied before each start."
        if dropped
        else "Only the server was restarted: the system's page cache could not be emptied."
    )


def sections(results, name):
    """Paragraphs and tables of what was measured."""
    phases = results.runs
    if goals.ours(results.methods):
        yield goal_table(results)
    if "search" in phases:
        for target in TARGETS:
            yield f"Search with the least setting that reaches recall@{NEIGHBOURS} = {target:.2f}:"
            yield search_table(results, f"{target:.2f}")
        yield from drift_of_machine(results)
        yield f"![Recall and queries per second]({plots.search_name(name)})"
    if "build" in phases:
        yield build_table(results)
        yield f"![Build time and size]({plots.build_name(name)})"
    if "inserts" in phases:
        yield (
            "Rows that are inserted, a row a transaction or all by one statement; WAL is not waited for. "
            "WAL is that of one client, the table's own share included; images of pages are those behind "
            "a checkpoint:"
        )
        yield write_table(results)
    if "vacuum" in phases:
        yield "VACUUM after a tenth of the rows are deleted, all over the table:"
        yield vacuum_table(results)
    if "filters" in phases:
        yield (
            f"Queries with a filter, scans being iterative: recall at the setting of {MIDDLE} without it, "
            f"and speed where recall is {MIDDLE} again:"
        )
        yield filter_table(results)
    if "drift" in phases:
        yield (
            "After as many rows again of a shifted distribution; half of the queries are shifted too. "
            f"Recall at the setting from before, and speed where it is {MIDDLE} again:"
        )
        yield drift_table(results)
    if "cold" in phases:
        yield cold_words(results)
        yield cold_table(results)
    if "memory" in phases:
        yield memory_table(results)


def in_words(name, method):
    """What a method is: access method, options, and what is varied."""
    options = f" WITH ({method['options']})" if method["options"] else ""
    return f"{name}: {method['using']}{options}, varied: {method['varied']}, library {method['library']}"


def conditions(results):
    """The list of conditions; what is the same in all phases is said once."""
    content = results.content
    lines = [f"{content['data']}; {content['lists']:,} lists in each IVF index"]
    lines += [in_words(name, method) for name, method in results.methods.items() if "using" in method]
    lines += list(dict.fromkeys(f"{run['versions']}; {run['machine']}" for run in results.runs.values()))
    for phase, run in results.runs.items():
        parts = [run["date"], run["words"], run["account"]]
        lines.append(f"{phase}: {'; '.join(part for part in parts if part)}")
    return "\n".join(f"- {line}" for line in lines)


def warnings(results):
    return [f"{phase}: {run['warning']}" for phase, run in results.runs.items() if run["warning"]]


def write(results, folder, name):
    """Prints the report; writes it and the plots into the folder."""
    if not results.content:
        raise RuntimeError(f"there are no results in {results.file}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    plots.draw(results, folder, name)
    parts = [f"# Vector indexes: {name}", *warnings(results), *sections(results, name)]
    text = "\n\n".join([*parts, "Conditions:", conditions(results)]) + "\n"
    print(f"\n{text}", end="")
    (Path(folder) / f"results-{name}.md").write_text(text)
