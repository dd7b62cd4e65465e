"""Results of a data set, which accumulate in a JSON file.

    {"data": words, "lists": n, "dimensions": n, "rows": n,
     "runs": {phase: {"versions": ..., "account": ..., "warning": ..., ...}},
     "methods": {name: {"using": ..., "options": ..., "factory": ..., "library": digest,
                        phase: result}}}

A phase that is measured again replaces what was there, for the methods that
took part.
"""

import json
import os
from datetime import date
from pathlib import Path

from measuring import processor


class Results:
    """The content of the file; `save` after each phase."""

    def __init__(self, folder, name):
        self.file = Path(folder) / f"results-{name}.json"
        self.content = json.loads(self.file.read_text()) if self.file.exists() else {}

    @property
    def methods(self):
        return self.content["methods"]

    @property
    def runs(self):
        return self.content["runs"]

    def describe(self, data, lists):
        """Says what is measured; results of other data under the same name are dropped."""
        known = {
            "data": data.words(),
            "lists": lists,
            "rows": len(data),
            "dimensions": data.dimensions,
            "metric": data.metric,
        }
        if any(self.content.get(key) != value for key, value in known.items()):
            self.content = {**known, "runs": {}, "methods": {}}

    def take_library(self, name, digest):
        """Drops what another build of a method's library did: this one may do otherwise."""
        method = self.methods.setdefault(name, {})
        if method.get("library") != digest:
            method.clear()
            method["library"] = digest

    def keep(self, phase, name, result):
        self.methods.setdefault(name, {})[phase] = result

    def ran(self, phase, watch, versions, words=""):
        """Notes under which conditions a phase was measured."""
        self.runs[phase] = {
            "date": date.today().isoformat(),
            "versions": versions,
            "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
            "account": watch.account() if watch.shares else "",
            "warning": watch.warning() if watch.shares else "",
            "words": words,
        }
        self.save()

    def save(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.content, indent=1) + "\n")
        new.replace(self.file)
