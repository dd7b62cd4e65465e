"""pgbench as the client: its own share of a query's time is a few microseconds."""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

# Share of each client's first transactions that does not count: what a new
# connection reads once.
WARM_UP = 0.1


def program():
    """Path of the pgbench that belongs to PG_CONFIG, or the one in PATH."""
    if config := os.environ.get("PG_CONFIG"):
        bindir = subprocess.run([config, "--bindir"], check=True, capture_output=True, text=True).stdout
        return str(Path(bindir.strip()) / "pgbench")
    return "pgbench"


def options_of(settings):
    """PGOPTIONS that make these settings."""
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def run(script, settings, clients=1, transactions=100, variables=None):
    """Seconds of each transaction, by client: float64 (clients, transactions).

    All of them prepare the script's statements once. In the script, :client_id
    tells the clients apart.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.sql"
        file.write_text(script)
        command = [program(), "--no-vacuum", "--protocol=prepared", f"--client={clients}"]
        command += [f"--jobs={min(clients, 2)}", f"--transactions={transactions}", f"--file={file}"]
        command += ["--log", f"--log-prefix={folder}/log"]
        command += [f"--define={name}={value}" for name, value in (variables or {}).items()]
        environment = {**os.environ, "PGOPTIONS": options_of(settings)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")
        return read_logs(sorted(Path(folder).glob("log*")), clients)


def read_logs(files, clients):
    """Seconds of each transaction by client; lines hold client, number, microseconds, ..."""
    seconds = [[] for _ in range(clients)]
    for file in files:
        for line in file.read_text().splitlines():
            client, _, microseconds, _ = line.split(maxsplit=3)
            seconds[int(client)].append(int(microseconds) / 1e6)
    return [np.array(times) for times in seconds]


def warm(seconds):
    """The transactions of each client after the first ones."""
    return [times[int(np.ceil(WARM_UP * len(times))) :] for times in seconds]


def rate(seconds):
    """Transactions per second of all clients together; each begins the next when one has ended."""
    return float(sum(len(times) / times.sum() for times in seconds))
