"""One run: which tables there are, and in which order phases are measured."""

import math
import sys
import time
from statistics import median

import database
import phases
import store
import writing
from candidates import Indexed, InProcess
from measuring import Watch
from processes import family_cpu_seconds
from search import least_setting, remembered, search
from truth import truth

PHASES = ("build", "search", "around", "memory", "filters", "inserts", "vacuum", "drift", "cold")
# Bytes of vectors up to which each method has a table of its own.
SMALL = 2 * 2**30
ALONE = "(table without index)"


class Bench:
    """What all phases share."""

    def __init__(self, args, data, chosen, peers, results):
        self.args = args
        self.data = data
        self.lists = args.lists or round(math.sqrt(len(data)))
        self.chosen = chosen
        self.peers = peers
        self.results = results
        self.apart = data.size <= SMALL and not args.one_table
        self.pids = phases.server_pids()
        self.patience = args.patience
        self.watches = {}
        self.doubled = None
        self.truth = truth(data, args.cache)
        results.describe(data, self.lists)
        with database.connect() as connection:
            self.versions = database.versions(connection)
            for method in chosen:
                if method.extension:
                    connection.execute(f"CREATE EXTENSION IF NOT EXISTS {method.extension} CASCADE")
        self.libraries = self.find_libraries()
        for method in chosen:
            results.take_library(method.name, self.libraries[method.name])
            results.keep("using", method.name, method.using)
            results.keep("options", method.name, method.options.replace("{lists}", str(self.lists)))
            results.keep("factory", method.name, method.factory)
            results.keep("varied", method.name, method.varied)

    def table(self, method):
        return f"item_{method.identifier}" if self.apart else "item"

    def find_libraries(self):
        """{name: digest} of the libraries that new connections load now."""
        with database.connect() as connection:
            return {method.name: store.library_digest(connection, method.using) for method in self.chosen}

    def wanted(self, phase):
        return phase in self.args.measure

    def watch(self, phase):
        """The watch over a phase, of all groups; the patience is that of the whole run."""
        watch = self.watches.setdefault(phase, Watch(self.args.others, 0, family_cpu_seconds))
        watch.patience = self.patience
        return watch

    def ran(self, phase, words=""):
        """Saves a phase, unless it was not one and the same library that was measured."""
        if self.find_libraries() != self.libraries:
            raise RuntimeError(
                f"an access method's library was replaced during this run: its {phase} is not saved"
            )
        self.patience = self.watch(phase).patience
        self.results.ran(phase, self.watches[phase], self.versions, words)

    def load(self):
        """One table for all methods or one for each; and the queries."""
        with database.connect() as connection:
            store.load_queries(connection, "query", self.data.queries)
            for table in sorted({self.table(method) for method in self.chosen}):
                print(f"Loading {table}", file=sys.stderr)
                store.load(connection, table, self.data)

    def run(self):
        """All phases that are wanted."""
        self.load()
        groups = [self.chosen] if self.apart else [[method] for method in self.chosen]
        for group in groups:
            self.run_group(group)
        if not self.apart and self.wanted("search") and len(groups) > 1:
            self.repeat(self.chosen[0])

    def run_group(self, group):
        """The phases of methods whose indexes are there at the same time."""
        candidates = {
            method.name: Indexed(method, self.table(method), self.data, self.lists) for method in group
        }
        self.build(group)
        self.search(group, candidates)
        for phase, measure in (
            ("around", self.around),
            ("memory", self.memory),
            ("filters", self.filters),
            ("cold", self.cold),
            ("inserts", self.inserts),
            ("vacuum", self.vacuum),
            ("drift", self.drift),
        ):
            if self.wanted(phase):
                print(f"Measuring {phase}", file=sys.stderr)
                measure(candidates)
        for candidate in candidates.values():
            candidate.close()
        with database.connect() as connection:
            for method in group:
                store.drop_index(connection, self.table(method))

    def build(self, group):
        pairs = [(method, self.table(method)) for method in group]
        memory = self.args.build_memory
        if not self.wanted("build"):
            for method, table in pairs:
                phases.build(None, self.pids, method, table, self.data, self.lists, memory, 2)
            return
        watch = self.watch("build")
        times, workers = self.args.builds, self.args.workers
        made = phases.build_rounds(watch, self.pids, pairs, self.data, self.lists, memory, times, workers)
        for name, builds in made.items():
            self.results.keep("build", name, builds)
        self.ran("build", f"maintenance_work_mem = {memory}")

    def search(self, group, candidates):
        if not self.wanted("search"):
            return
        together = dict(candidates)
        own = {method.factory for method in group}
        for factory in self.peers:
            if factory in own:
                peer = InProcess(factory, self.data, self.lists)
                print(f"  built {peer.name} in {peer.build():.1f} s", file=sys.stderr)
                together[peer.name] = peer
        order = "in turns" if self.apart else "one method after the other"
        alone = 1000 * median(candidates[group[0].name].overhead())
        words = (
            f"{self.args.rounds} rounds of all queries, {order}; prepared statements, warm, by pgbench; "
            f"client, protocol and reading the query's vector take {alone:.2f} ms of each query"
        )
        self.search_and_keep("search", together, words)

    def search_and_keep(self, phase, candidates, words=""):
        """Searches with the candidates in turns; what is known is saved at each step."""
        turns = time.time()

        def keep(found):
            for name, result in found.items():
                self.results.keep(phase, name, {"turns": turns, **result})
            self.ran(phase, words)

        search(self.watch(phase), self.pids, candidates, self.truth, self.args.rounds, keep)

    def repeat(self, method):
        """Searches with the first method again, to show how far the machine's speed has drifted."""
        table, memory = self.table(method), self.args.build_memory
        phases.build(None, self.pids, method, table, self.data, self.lists, memory, 2)
        candidate = Indexed(method, table, self.data, self.lists)
        self.search_and_keep("repeat", {method.name: candidate})
        candidate.close()

    def middle(self, candidate):
        """The setting at which the method reaches the middle target; the highest if it never does."""
        found = self.results.methods[candidate.name].get("search", {}).get("targets", {})
        if found.get(phases.MIDDLE) and self.wanted("search"):
            return found[phases.MIDDLE]["setting"]
        recall = remembered(candidate, self.truth)
        target = float(phases.MIDDLE)
        return least_setting(recall, target, candidate.least, candidate.most) or candidate.most

    def around(self, candidates):
        """Milliseconds of a search that reads next to nothing, without client and protocol."""
        watch = self.watch("around")
        for name, candidate in candidates.items():
            if candidate.method.little:
                candidate.around()
                both = watch.take(lambda who=candidate: (who.around(), who.overhead()), self.pids)
                search, alone = (1000 * float(median(seconds)) for seconds in both)
                self.results.keep("around", name, search - alone)
        self.ran("around")

    def memory(self, candidates):
        for name, candidate in candidates.items():
            self.results.keep("memory", name, phases.memory(candidate, self.middle(candidate)))
        self.ran("memory")

    def filters(self, candidates):
        watch = self.watch("filters")
        for name, candidate in candidates.items():
            found = phases.filters(
                candidate, self.middle(candidate), self.data, self.args.cache, watch, self.pids
            )
            self.results.keep("filters", name, found)
        self.ran("filters")

    def cold(self, candidates):
        if not self.args.restart:
            print("  left out: --restart does not say how", file=sys.stderr)
            return
        settings = {name: self.middle(candidate) for name, candidate in candidates.items()}
        for name, candidate in candidates.items():
            self.results.keep("cold", name, phases.cold(candidate, settings[name], self.args.restart))
        self.pids = phases.server_pids()
        self.ran("cold")

    def writers(self, candidates):
        """Writers to the tables of candidates, which hold no connection meanwhile."""
        for candidate in candidates.values():
            candidate.close()
        count = self.args.inserts
        return {
            name: writing.Writer(candidate.table, self.data, count, candidate.method.session)
            for name, candidate in candidates.items()
        }

    def inserts(self, candidates):
        """With a table that has no index, which tells what each index is not to be charged with."""
        with database.connect() as connection:
            store.create_table(connection, "item_alone", self.data.dimensions)
        alone = {ALONE: writing.Writer("item_alone", self.data, self.args.inserts)}
        writers = self.writers(candidates)
        writing.prepare(self.data, self.args.inserts)
        found = writing.inserts({**alone, **writers}, self.watch("inserts"), self.pids, self.args.rounds)
        writing.finish()
        for name, result in found.items():
            self.results.keep("inserts", name, result)
        with database.connect() as connection:
            for writer in writers.values():
                writer.clear(connection)
        self.ran("inserts", f"{self.args.inserts:,} rows in each of {self.args.rounds} rounds, in turns")

    def vacuum(self, candidates):
        writing.without_images()
        found = writing.vacuums(self.writers(candidates), self.watch("vacuum"), self.pids)
        writing.finish()
        for name, result in found.items():
            self.results.keep("vacuum", name, result)
        self.ran("vacuum", f"{writing.ROUNDS} rounds, in turns")

    def drift(self, candidates):
        watch = self.watch("drift")
        # The same for all groups, and dear.
        self.doubled = self.doubled or phases.Drift(self.data, self.args.cache)
        for name, candidate in candidates.items():
            setting = self.middle(candidate)
            self.results.keep("drift", name, self.doubled.measure(candidate, setting, watch, self.pids))
        self.ran("drift", f"shift {self.doubled.SHIFT}")
