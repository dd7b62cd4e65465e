"""What processes use, those included that they start."""

import threading
from pathlib import Path

from measuring import TICKS_PER_SECOND

# Seconds between two looks at the memory of a build.
PAUSE = 0.05


def fields_of(pid):
    """Fields of /proc/PID/stat from the state on (the third), or None if the process is gone."""
    try:
        # The name in parentheses may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def children(pids):
    """Process ids of the children of these processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = fields_of(folder.name)
        if fields and int(fields[1]) in pids:
            found.append(int(folder.name))
    return found


def family_cpu_seconds(pids):
    """Processor time of the processes and their children, those that have ended included."""
    total = 0
    for pid in {*pids, *children(pids)}:
        fields = fields_of(pid)
        if fields:
            # utime, stime, and those of the children that were waited for.
            total += sum(int(fields[place]) for place in range(11, 15))
    return total / TICKS_PER_SECOND


def private_memory(pid):
    """Bytes of memory that the process has for itself, so without shared buffers."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


class PeakMemory:
    """Greatest private memory, in bytes, of a process while the context is entered."""

    def __init__(self, pid):
        self.pid = pid
        self.peak = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self):
        while not self.ended.wait(PAUSE):
            self.peak = max(self.peak, private_memory(self.pid))

    def __enter__(self):
        self.peak = private_memory(self.pid)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
