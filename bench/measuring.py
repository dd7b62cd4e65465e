"""Fair comparisons, and their reports.

Candidates are measured in turns, and what counts is the ratio within one round
and its spread. That alone does not make a busy machine fair: a candidate whose
threads spin at barriers loses several times its speed where another one loses a
tenth. So each measurement also counts what other processes have used, and is
taken again if that was too much.
"""

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

# Seconds; OpenMP's threads spin for a few milliseconds after their last work.
REST = 0.02
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def in_turns(candidates, works, measure, pause=0.0):
    """Yields (name, result) of measure(candidate, work) for each work, candidates in turns.

    `candidates` maps names to candidates. Each work starts with another
    candidate than the one before. `pause` seconds of rest precede each
    measurement: threads of the one that has just worked may still be spinning.
    """
    names = list(candidates)
    for place, work in enumerate(works):
        first = place % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            yield name, measure(candidates[name], work)


def cpu_seconds(pids):
    """Processor time, user and system, that these processes have used; in steps of 10 ms."""
    total = 0
    for pid in pids:
        # The name in parentheses may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_SECOND


def peak_memory(pids):
    """Sum of the most memory, in bytes, that each of these processes ever had resident."""
    total = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * total


def timed(call, pids):
    """What call() returns, its result and seconds, and the processor time of the processes."""
    before = cpu_seconds(pids)
    result, wall = call()
    return result, wall, cpu_seconds(pids) - before


def clock(work):
    """Result of work(), and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


@dataclass
class Times:
    """Seconds of one candidate, by round."""

    wall: list = field(default_factory=list)
    cpu: list = field(default_factory=list)


def measure_rounds(watch, pids, candidates, works, call, rounds, show):
    """Has all works done in each round, in turns; returns the times and the last results by candidate.

    call(candidate, work) gives a result and its seconds; show(seconds) says in
    words how fast a round was.
    """
    times = {name: Times() for name in candidates}
    for place in range(rounds):
        # Who comes first changes from round to round too.
        turned = dict(reversed(candidates.items())) if place % 2 else candidates
        sums, results = watch.take(lambda turned=turned: measure_round(turned, works, call), pids)
        for name, (wall, cpu) in sums.items():
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
        shown = ", ".join(f"{name} {show(sums[name][0])}" for name in candidates)
        print(f"  round {place + 1} of {rounds}: {shown}", file=sys.stderr)
    return times, results


def measure_round(candidates, works, call):
    """Sums of (wall, cpu) seconds, and a list of the results, by candidate."""
    results = {name: [] for name in candidates}
    sums = {name: (0.0, 0.0) for name in candidates}

    def measure(candidate, work):
        return timed(lambda: call(candidate, work), candidate.pids)

    for name, (result, wall, cpu) in in_turns(candidates, works, measure, REST):
        results[name].append(result)
        sums[name] = (sums[name][0] + wall, sums[name][1] + cpu)
    return sums, results


def machine_cpu_seconds():
    """Processor time of all processes, and what the host took away; see proc_stat(5)."""
    user, nice, system, _, _, _, _, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, steal))) / TICKS_PER_SECOND


class Watch:
    """Takes measurements while other processes are quiet.

    `limit` is how many cores they may use on average. A measurement in which
    they used more is thrown away and taken again, whatever its result was. When
    `patience` seconds in all have gone into waiting and retaking, measurements
    are kept as they come, and the report says so. `count` gives the processor
    time of the processes that do the work.
    """

    def __init__(self, limit, patience, count=cpu_seconds):
        self.limit = limit
        self.patience = patience
        self.count = count
        self.shares = []
        self.retaken = 0

    def take(self, measure, pids):
        """The result of measure(), in which the processes `pids` do the work."""
        while True:
            begun = time.monotonic()
            while self.patience > time.monotonic() - begun and self.others(pids)[1] > self.limit:
                pass
            waited = time.monotonic() - begun
            result, share = self.others(pids, measure)
            if share <= self.limit or self.patience <= waited:
                self.patience -= waited
                self.shares.append(share)
                return result
            self.patience -= time.monotonic() - begun
            self.retaken += 1
            print(f"  others used {share:.2f} cores: taken again", file=sys.stderr)

    def others(self, pids, work=lambda: time.sleep(1)):
        """Result of work(), and the cores that processes other than `pids` used during it."""
        machine, own, start = machine_cpu_seconds(), self.count(pids), time.monotonic()
        result = work()
        seconds = time.monotonic() - start
        used = machine_cpu_seconds() - machine - (self.count(pids) - own)
        return result, max(used, 0.0) / seconds

    def warning(self):
        """What a report that could not get quiet must begin with; empty for others."""
        disturbed = sum(share > self.limit for share in self.shares)
        if not disturbed:
            return ""
        return (
            f"**NOT VALID as a comparison**: {disturbed} of {len(self.shares)} measurements were "
            "disturbed by other processes, which do not slow all candidates equally."
        )

    def account(self):
        """In words, what others did."""
        return (
            f"other processes used {median(self.shares):.2f} cores (median of {len(self.shares)} "
            f"measurements, at most {max(self.shares):.2f}); {self.retaken} measurements were "
            f"taken again because others used more than {self.limit:.2f}"
        )


def add_watch_options(parser):
    """The options that `Watch` needs."""
    parser.add_argument(
        "--others",
        type=float,
        default=0.1,
        metavar="CORES",
        help="what other processes may use during a measurement (default %(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=1800,
        metavar="SECONDS",
        help="for waiting until they are quiet, and retaking (default %(default)s)",
    )


def ratios(these, those):
    """Quotients of two equally long series."""
    return [this / that for this, that in zip(these, those, strict=True)]


def memory_table(services):
    """Peak memory by candidate, of the processes given for each; the ratio is to the second."""
    peaks = {name: peak_memory(pids) for name, pids in services.items()}
    rows = [[name, f"{peak / 1e6:,.0f}"] for name, peak in peaks.items()]
    if len(peaks) == 2:
        first, second = peaks.values()
        rows.append(["**ratio**", f"{first / second:.2f}"])
    return markdown_table(["memory", "peak MB"], rows)


def spread(values, digits):
    """Median and range, as "1.52 (1.48 to 1.60)"."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def markdown_table(header, rows):
    """A table whose first column is of text and whose others are of numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def processor():
    """Model name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


class Report:
    """Collects what a benchmark says, as Markdown."""

    def __init__(self, title):
        self.parts = [f"# {title}"]
        self.load_before = os.getloadavg()[0]

    def add(self, *parts):
        """Adds paragraphs, lists or tables."""
        self.parts += parts

    def finish(self, watch, conditions, file=None):
        """Prints the report with the conditions of the run, a list of texts; writes it to `file` too."""
        cores = len(os.sched_getaffinity(0))
        conditions = [
            *conditions,
            f"{processor()}, {cores} cores",
            watch.account(),
            f"load average of the last minute: {self.load_before:.1f} before, "
            f"{os.getloadavg()[0]:.1f} at the end (the benchmark's own work included)",
        ]
        self.add("Conditions:", "\n".join(f"- {condition}" for condition in conditions))
        if watch.warning():
            self.parts.insert(1, watch.warning())
        text = "\n\n".join(self.parts) + "\n"
        print(f"\n{text}", end="")
        if file:
            Path(file).write_text(text)
