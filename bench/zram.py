# SPDX-License-Identifier: MIT
"""A program in a memory cgroup whose swap is compressed memory: what it has resident and what that takes are kept within one sum.

zram's own memory is charged to nobody, so the limit of the group is the sum less what zram uses, set anew several times a second. The
device and the group are made for one run. A guard, a process of its own, removes them when this one has ended in whatever way.
"""

import errno
import os
import select
import shutil
import signal
import subprocess
import time

CONTROL = "/sys/class/zram-control"
LEAST = 4 << 20          # that the group is left, whatever zram takes
STEP = 64 << 20          # that is asked back at a time
RELIEF = 1 << 20         # that is given when nothing could be reclaimed
TICK = 0.2
SQUEEZE_SECONDS = 600    # until the sum is kept to


class Unable(Exception):
    pass


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read()


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(str(text))


def tool(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        raise Unable(f"no {name}: Debian's util-linux and mount have it")
    return path


def memory_cgroups():
    """Where the hierarchy of version 1 with the memory controller is."""
    for line in read("/proc/mounts").splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup" and "memory" in options.split(","):
            return place
    raise Unable("no memory cgroups of version 1 here")


def try_to(action, *args):
    try:
        action(*args)
    except (OSError, subprocess.CalledProcessError):
        pass


class Ground:
    """The device and the group. Made by __enter__, removed by the guard."""

    def __init__(self, disk_bytes):
        if os.geteuid():
            raise Unable("swap and cgroups need root")
        if not os.path.exists(f"{CONTROL}/hot_add"):
            raise Unable("no zram here")
        self.disk_bytes, self.number, self.guard, self.pipe = disk_bytes, None, None, None
        self.group = os.path.join(memory_cgroups(), f"gcuffd-bench-{os.getpid()}")

    def device(self, name):
        return f"/sys/block/zram{self.number}/{name}"

    def __enter__(self):
        self.number = int(read(f"{CONTROL}/hot_add"))
        self.begin_guard()
        try:
            self.make()
        except (OSError, subprocess.CalledProcessError) as error:
            self.end_guard()
            raise Unable(f"no swap on zram in a memory cgroup: {error}") from error
        return self

    def __exit__(self, *_):
        self.end_guard()

    def make(self):
        if "lz4" in read(self.device("comp_algorithm")).split():
            write(self.device("comp_algorithm"), "lz4")
        write(self.device("disksize"), self.disk_bytes)
        node = f"/dev/zram{self.number}"
        subprocess.run([tool("mkswap"), node], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([tool("swapon"), "-p", "32767", node], check=True)
        os.mkdir(self.group)
        write(f"{self.group}/memory.swappiness", 100)
        write(f"{self.group}/memory.oom_control", 1)  # who finds nothing to reclaim waits, until the limit moves

    def begin_guard(self):
        reading, self.pipe = os.pipe()
        self.guard = os.fork()
        if self.guard:
            os.close(reading)
            return
        try:
            os.setsid()
            os.close(self.pipe)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.read(reading, 1)
            self.remove()
        finally:
            os._exit(0)

    def end_guard(self):
        os.close(self.pipe)
        os.waitpid(self.guard, 0)

    def remove(self):
        if os.path.isdir(self.group):
            try_to(self.limit, -1)
            self.kill_all()
        try_to(subprocess.run, [tool("swapoff"), f"/dev/zram{self.number}"])
        for _ in range(50):
            try_to(write, f"{CONTROL}/hot_remove", self.number)
            try_to(os.rmdir, self.group)
            if not os.path.isdir(self.group) and not os.path.exists(self.device("disksize")):
                return
            time.sleep(0.1)

    def kill_all(self):
        for _ in range(100):
            members = read(f"{self.group}/cgroup.procs").split()
            for pid in members:
                try_to(os.kill, int(pid), signal.SIGKILL)
            if not members:
                return
            time.sleep(0.1)

    def enter(self):
        write(f"{self.group}/cgroup.procs", os.getpid())

    def limit(self, size):
        write(f"{self.group}/memory.limit_in_bytes", size)

    def is_stuck(self):
        return "under_oom 1" in read(f"{self.group}/memory.oom_control")

    def usage(self):
        return int(read(f"{self.group}/memory.usage_in_bytes"))

    def swapped(self):
        return int(read(self.device("mm_stat")).split()[0])

    def compressed(self):
        return int(read(self.device("mm_stat")).split()[2])


class Run:
    """The program, which tells how far it is (--steps): bench/coldset.c."""

    def __init__(self, ground, command, env, most, collect_seconds):
        self.ground, self.most, self.collect_seconds = ground, most, collect_seconds
        self.limiting, self.deadline, self.values, self.sums, self.rest = False, None, {}, [], b""
        self.child = subprocess.Popen(command + ["--steps"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
                                      preexec_fn=ground.enter)

    def tend(self):
        """A step towards the sum; how much is over it."""
        used, compressed = self.ground.usage(), self.ground.compressed()
        least = used + RELIEF if self.ground.is_stuck() else used - STEP
        try:
            self.ground.limit(max(LEAST, self.most - compressed, least))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        return used + compressed - self.most

    def squeeze(self):
        """Until the sum is kept to, or can't be: then less of one only makes more of the other."""
        end, since, over = time.monotonic() + SQUEEZE_SECONDS, time.monotonic(), self.tend()
        while over > self.most / 100 and time.monotonic() < end:
            now = self.tend()
            if now < over:
                over, since = now, time.monotonic()
            elif time.monotonic() - since > 20:
                break
            time.sleep(TICK / 10)
        if over > self.most / 20:
            raise Unable(f"process and zram together don't go below {(over + self.most) >> 20} MiB: ask for more than "
                         f"{self.most >> 20} MiB with --sum")

    def answer(self, step):
        if step == "built":
            self.limiting = True
            self.squeeze()
        elif step == "settled":
            self.start_watch()
        else:
            self.limiting, self.deadline = False, None
            self.ground.limit(-1)
        self.child.stdin.write(b"\n")
        self.child.stdin.flush()

    def start_watch(self):
        self.deadline = time.monotonic() + self.collect_seconds

    def take(self, line):
        key, colon, value = line.partition(": ")
        if key == "step":
            self.answer(value)
        elif colon:
            self.values[key] = None if value == "null" else value
            if key.startswith("collection_"):
                self.start_watch()

    def tick(self):
        if select.select([self.child.stdout], [], [], TICK)[0]:
            chunk = os.read(self.child.stdout.fileno(), 65536)
            *lines, self.rest = (self.rest + chunk).split(b"\n")
            for line in lines:
                self.take(line.decode())
            if not chunk:
                return False
        if self.limiting:
            self.tend()
            self.sums.append(self.ground.usage() + self.ground.compressed())
            self.values["zram_kib"] = str(self.ground.compressed() >> 10)
            self.values["swapped_kib"] = str(self.ground.swapped() >> 10)
        return True

    def go(self, seconds):
        """What it printed, and its exit status: None if a collection took too long."""
        end, slow = time.monotonic() + seconds, False
        while not slow and self.tick():
            slow = self.deadline is not None and time.monotonic() > self.deadline
            if slow or time.monotonic() > end:
                self.child.kill()
        self.child.wait()
        if self.sums:
            self.values["sum_kib"] = str(sum(self.sums) // len(self.sums) >> 10)
            self.values["sum_peak_kib"] = str(max(self.sums) >> 10)
        return self.values, None if slow else self.child.returncode


def run(command, env, most, disk_bytes, collect_seconds, seconds):
    with Ground(disk_bytes) as ground:
        return Run(ground, command, env, most, collect_seconds).go(seconds)
