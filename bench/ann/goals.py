"""What is promised of faiss_ivf, and what the results say to it."""

import re
from dataclasses import dataclass
from statistics import median

from candidates import in_process_name
from measuring import ratios
from phases import MIDDLE, WORKERS

OURS = "faiss_ivf"
FAST_SCAN = re.compile(r"x4fs|RaBitQ")


@dataclass
class Goal:
    """A promise: `text` says it, `bound` is what the value must reach; `least` if from above.

    `values` holds (median, least, greatest), or None where something was not
    measured. Without a bound the value is told, and that is all.
    """

    text: str
    values: tuple | None
    bound: float | None = None
    least: bool = True

    def reached(self):
        middle = self.values[0]
        return middle >= self.bound if self.least else middle <= self.bound

    def words(self):
        if self.values is None:
            return "not measured"
        middle, low, high = self.values
        text = f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        if self.bound is None:
            return text
        return f"{text}: {'reached' if self.reached() else '**missed**'}"


def dig(content, *keys):
    """content[key][key]..., or None where a key is missing."""
    for key in keys:
        if not content or key not in content:
            return None
        content = content[key]
    return content


def quotient(these, those):
    """(median, least, greatest) of the ratios of two series, by round where they are equally long."""
    if not these or not those:
        return None
    found = ratios(these, those) if len(these) == len(those) else [median(these) / median(those)]
    return median(found), min(found), max(found)


def rates(methods, name, target=MIDDLE):
    """(token of the turns, queries per second by round) at a recall."""
    found = dig(methods, name, "search")
    return dig(found, "turns"), dig(found, "targets", target, "qps")


def rate_quotient(methods, ours, theirs, target=MIDDLE):
    """Ratio of the speeds at a recall: of one round each if the two were measured in turns."""
    (first, these), (second, those) = rates(methods, ours, target), rates(methods, theirs, target)
    if these and those and first != second:
        these, those = [median(these)], [median(those)]
    return quotient(these, those)


def seconds(methods, name, workers):
    return [made["seconds"] for made in dig(methods, name, "build", str(workers)) or []]


def build_quotient(methods, ours, theirs):
    """Ratio of the seconds of builds by as many processes: the fewest that both were built by."""
    for workers in WORKERS:
        found = quotient(seconds(methods, theirs, workers), seconds(methods, ours, workers))
        if found:
            return found
    return None


def size(methods, name):
    """Bytes of the index."""
    made = last_build(dig(methods, name, "build") or {})
    return made["size"] if made else None


def last_build(builds):
    """The last build by the fewest processes, or None."""
    made = [builds[str(workers)][-1] for workers in WORKERS if builds.get(str(workers))]
    return made[0] if made else None


def by_using(methods, using):
    """The standard method of an access method: the first that uses it."""
    return next((name for name, method in methods.items() if method.get("using") == using), None)


def goals(results, name, small):
    """Goals of the method `name` at recall 0.95; `small`: on the glosses, where time counts too."""
    methods = results.methods
    # What the default is promised to do is told of other codes, too.
    promised = "factory" not in (methods[name].get("options") or "")

    def bound(number):
        return number if promised else None

    flat, graph = by_using(methods, "ivfflat"), by_using(methods, "hnsw")
    found = [
        Goal("QPS, of ivfflat's: at least 12", rate_quotient(methods, name, flat), bound(12)),
        Goal("QPS, of hnsw's: at least 1.3", rate_quotient(methods, name, graph), bound(1.3)),
    ]
    if small:
        p50 = dig(methods, name, "search", "targets", MIDDLE, "p50")
        found.append(Goal("p50 in ms: at most 0.8", p50 and (p50, p50, p50), bound(0.8), least=False))
        around = dig(methods, name, "around")
        words = "ms around the scan, without client and protocol: at most 0.3"
        found.append(Goal(words, around and (around, around, around), bound(0.3), least=False))
    factory = methods[name].get("factory") or ""
    part = 0.5 if FAST_SCAN.search(factory) else 0.7
    peer = in_process_name(factory) if factory else None
    found.append(
        Goal(
            "QPS, of FAISS's in process: at least 0.7, fast-scan codes 0.5",
            rate_quotient(methods, name, peer),
            part,
        )
    )
    one = seconds(methods, name, 1)
    inserts = [dig(methods, who, "inserts", "one", "rates") for who in (name, flat)]
    sizes = [size(methods, who) for who in (name, flat)]
    found += [
        Goal("build, times faster than ivfflat: at least 1.5", build_quotient(methods, name, flat), bound(1.5)),
        Goal("build, times faster than hnsw: at least 15", build_quotient(methods, name, graph), bound(15)),
        Goal("build, times faster with two processes", quotient(one, seconds(methods, name, 2))),
        Goal(
            "size, of ivfflat's: at most 0.33",
            quotient([sizes[0]], [sizes[1]]) if all(sizes) else None,
            bound(1 / 3),
            least=False,
        ),
        Goal(
            "inserts per second, of ivfflat's: at least 1",
            quotient(*inserts),
            bound(1),
        ),
    ]
    return found


def ours(methods):
    """Names of faiss_ivf's methods."""
    return [name for name, method in methods.items() if method.get("using") == OURS]
