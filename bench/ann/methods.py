"""What is compared: index access methods, described in data, and FAISS without a database."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

OPERATORS = {"ip": "<#>", "l2": "<->"}
KEYS = ("name", "using", "with", "setting", "least", "most", "opclass", "extension", "set", "filter")


class BadMethod(Exception):
    """An option does not describe a method."""


@dataclass(frozen=True)
class Method:
    """An index access method on pgvector's type.

    `options` is what WITH holds; {lists} in it becomes the number of lists.
    `setting` is what is varied until the recall is reached: to `value` of a whole
    number from `least` to `most` (None: the number of lists). `session` is set for all searches, and
    `filtering` instead for those that have a WHERE clause. `factory` is the
    string with which in-process FAISS makes the same index, if it can. `little`
    are settings with which a search reads as little as it can.
    """

    name: str
    using: str
    setting: str
    options: str = ""
    least: int = 1
    most: int | None = None
    opclass: str = "vector_{metric}_ops"
    extension: str | None = None
    session: dict = field(default_factory=dict)
    filtering: dict = field(default_factory=dict)
    factory: str | None = None
    value: Callable = int
    little: dict = field(default_factory=dict)

    @property
    def varied(self):
        """The setting, and how its value follows from the number that reports tell."""
        return self.setting if self.value is int else f"{self.setting} = {self.value.__doc__}"

    @property
    def identifier(self):
        """The name as a part of tables' names: other characters become an underscore."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower())

    def create_index(self, index, table, metric, lists):
        """The statement that makes the index on the column v."""
        options = self.options.replace("{lists}", str(lists))
        having = f" WITH ({options})" if options else ""
        opclass = self.opclass.replace("{metric}", metric)
        return f"CREATE INDEX {index} ON {table} USING {self.using} (v {opclass}){having}"

    def highest(self, lists):
        return lists if self.most is None else self.most


def share(number):
    """1 - 1/n"""
    return round(1 - 1 / number, 6)


FAISS_IVF = Method(
    "faiss_ivf",
    "faiss_ivf",
    "faiss_ivf.target_recall",
    "lists = {lists}",
    # A target of 0 would be that of the index.
    least=2,
    most=10_000,
    value=share,
    session={"faiss_ivf.iterative_scan": "off"},
    filtering={"faiss_ivf.iterative_scan": "strict_order"},
    factory="RR,IVF,RaBitQ,Refine(SQ8)",
    little={"faiss_ivf.nprobe": 1},
)
IVFFLAT = Method(
    "ivfflat",
    "ivfflat",
    "ivfflat.probes",
    "lists = {lists}",
    session={"ivfflat.iterative_scan": "off"},
    # It has no strict order.
    filtering={"ivfflat.iterative_scan": "relaxed_order"},
)
HNSW = Method(
    "hnsw",
    "hnsw",
    "hnsw.ef_search",
    least=10,
    most=1000,
    session={"hnsw.iterative_scan": "off"},
    filtering={"hnsw.iterative_scan": "strict_order"},
)
STANDARD = {method.name: method for method in (FAISS_IVF, IVFFLAT, HNSW)}


def of_factory(factory):
    """faiss_ivf with the option factory."""
    if "'" in factory:
        raise BadMethod(f"a factory has no quotes: {factory}")
    return replace(
        FAISS_IVF,
        name=f"faiss_ivf {factory}",
        options=f"lists = {{lists}}, factory = '{factory}'",
        factory=factory,
    )


def faiss_factory(factory, lists):
    """FAISS's string of a factory: IVF takes the number of lists there."""
    return re.sub(r"\bIVF(?!\d)", f"IVF{lists}", factory)


def parse(text):
    """The method that "name=...,using=...,setting=..." describes.

    Values may be quoted with double quotes, and then hold commas. `with` is the
    WITH clause's content, `set` and `filter` are "name=value;name=value".
    """
    values = {}
    pattern = re.compile(r'(\w+)=("[^"]*"|[^,]*)(?:,|$)')
    place = 0
    while place < len(text):
        match = pattern.match(text, place)
        if not match:
            raise BadMethod(f"not KEY=VALUE,...: {text[place:]}")
        values[match[1]] = match[2].strip('"')
        place = match.end()
    unknown = set(values) - set(KEYS)
    missing = {"using", "setting"} - set(values)
    if unknown or missing:
        raise BadMethod(
            f"a method has the keys {', '.join(KEYS)}; unknown: {', '.join(sorted(unknown)) or 'none'}, "
            f"missing: {', '.join(sorted(missing)) or 'none'}"
        )
    session = settings_of(values.get("set", ""))
    return Method(
        values.get("name", values["using"]),
        values["using"],
        values["setting"],
        values.get("with", ""),
        int(values.get("least", 1)),
        int(values["most"]) if "most" in values else None,
        values.get("opclass", "vector_{metric}_ops"),
        values.get("extension"),
        session,
        settings_of(values["filter"]) if "filter" in values else session,
    )


def settings_of(text):
    """{name: value} of "name=value;name=value"."""
    pairs = [part.partition("=") for part in text.split(";") if part]
    if any(not equals for _, equals, _ in pairs):
        raise BadMethod(f"not NAME=VALUE;...: {text}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def choose(names, factories, others, faiss):
    """(methods, factories of in-process FAISS).

    `names` are those of standard methods (empty: all), `others` descriptions
    for `parse`. With `faiss` each method that has a factory gets its peer.
    """
    unknown = set(names) - set(STANDARD)
    if unknown:
        raise BadMethod(f"no method {', '.join(sorted(unknown))}; there are {', '.join(STANDARD)}")
    chosen = [STANDARD[name] for name in names or STANDARD]
    chosen += [of_factory(factory) for factory in factories]
    chosen += [parse(text) for text in others]
    if len({method.identifier for method in chosen}) < len(chosen):
        raise BadMethod("two methods have the same name")
    peers = [method.factory for method in chosen if method.factory] if faiss else []
    return chosen, list(dict.fromkeys(peers))
