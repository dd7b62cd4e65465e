"""Speed at equal recall, and the curve of both."""

import sys
from functools import cache
from statistics import median

import numpy as np
import pgbench
from measuring import in_turns

TARGETS = (0.90, 0.95, 0.99)
MANY = 8
# The curve ends at the setting that reaches this.
ENOUGH = 0.995


def least_setting(recall, target, least, most):
    """The least whole number from `least` to `most` with recall(number) >= target; None if there is none.

    recall must not fall as the number grows. Doubles, then halves the interval.
    """
    low, high = least - 1, least
    while recall(high) < target:
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if recall(middle) < target:
            low = middle
        else:
            high = middle
    return high


def doubling(recall, least, most):
    """Settings least, 2 least, 4 least, ... to the first that finds nearly everything."""
    setting = least
    while True:
        yield setting
        if recall(setting) >= ENOUGH or setting == most:
            return
        setting = min(2 * setting, most)


def remembered(candidate, truth, condition=""):
    """recall(setting) of a candidate, measured once for each setting."""
    return cache(lambda setting: truth.recall(candidate.answers(setting, condition)))


def summary(rounds):
    """What is kept of rounds of seconds by client: queries per second of each, and percentiles in ms."""
    together = np.concatenate([times for seconds in rounds for times in seconds])
    p50, p95, p99 = (float(1000 * np.percentile(together, percent)) for percent in (50, 95, 99))
    return {"qps": [pgbench.rate(seconds) for seconds in rounds], "p50": p50, "p95": p95, "p99": p99}


def take_rounds(watch, pids, candidates, settings, rounds, clients=1):
    """{name: summary} of rounds in which the candidates take turns, each at its setting."""
    kept = {name: [] for name in candidates}
    # None reaches the recall, perhaps.
    for place in range(rounds if candidates else 0):

        def one_round(place=place):
            turned = dict(reversed(candidates.items())) if place % 2 else candidates
            return dict(in_turns(turned, [None], lambda who, _: who.seconds(settings[who.name], clients)))

        for name, seconds in watch.take(one_round, pids).items():
            kept[name].append(seconds)
    return {name: summary(seconds) for name, seconds in kept.items()}


def search(watch, pids, candidates, truth, rounds, keep):
    """Measures candidates in turns.

    Calls keep({name: {"targets": ..., "curve": ...}}) whenever there is more.
    """
    recalls = {name: remembered(candidate, truth) for name, candidate in candidates.items()}
    results = {name: {"targets": {}, "curve": []} for name in candidates}
    for target in TARGETS:
        settings = {
            name: least_setting(recalls[name], target, candidate.least, candidate.most)
            for name, candidate in candidates.items()
        }
        # None says that it was tried.
        for name in candidates:
            results[name]["targets"][f"{target:.2f}"] = None
        able = {name: candidate for name, candidate in candidates.items() if settings[name]}
        for candidate in able.values():
            # Its pages are warm after this.
            candidate.seconds(settings[candidate.name])
        one = take_rounds(watch, pids, able, settings, rounds)
        many = {name: candidate for name, candidate in able.items() if candidate.clients}
        crowd = take_rounds(watch, pids, many, settings, rounds, MANY)
        for name, candidate in able.items():
            point = {"setting": settings[name], "recall": recalls[name](settings[name]), **one[name]}
            if name in crowd:
                point["many"] = crowd[name]
            results[name]["targets"][f"{target:.2f}"] = point
            print(
                f"  recall {target:.2f}: {candidate.name} at {point['setting']} finds {point['recall']:.3f}, "
                f"{median(point['qps']):,.0f} QPS, p50 {point['p50']:.3f} ms",
                file=sys.stderr,
            )
        keep(results)
    for name, candidate in candidates.items():
        settings = list(doubling(recalls[name], candidate.least, candidate.most))
        # One pass over the queries at each is enough for a plot.
        passes = watch.take(lambda who=candidate, ats=settings: [who.seconds(at) for at in ats], pids)
        for setting, seconds in zip(settings, passes, strict=True):
            point = {"setting": setting, "recall": recalls[name](setting), "qps": pgbench.rate(seconds)}
            results[name]["curve"].append(point)
        keep(results)
