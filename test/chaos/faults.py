"""What happens to the machines of a lab: a schedule drawn from a seed, and who starts again whatever ended, as an init would."""

import collections
import errno
import os
import signal
import subprocess
import threading
import time

IN = "add chain inet chaos in {{ type filter hook input priority -400; }}\nadd rule inet chaos in ip saddr {{ {peers} }} drop\n"
OUT = "add chain inet chaos out {{ type filter hook output priority -400; }}\nadd rule inet chaos out ip daddr {{ {peers} }} drop\n"
CUTS = {"hears and says nothing": IN + OUT, "hears nothing": IN, "is not heard": OUT}
WHOLE = "add table inet chaos\ndelete table inet chaos\n"


class Lab:
    def __init__(self, root, directory, net, prefix, controllers, hosts, spared):
        self.root, self.dir, self.net, self.prefix = root, directory, net, prefix
        self.controllers = [f"c{n + 1}" for n in range(controllers)]
        self.hosts = [f"a{n + 1}" for n in range(hosts)]
        self.spared = spared  # hosts whose power stays on, for the guests on them are watched
        self.down = collections.Counter()  # who is meant to be down now
        self.lock = threading.Lock()
        self.skew = {}
        self.ended = []  # by themselves

    def address(self, machine):
        return f"{self.net}.{int(machine[1:]) + (10 if machine[0] == 'a' else 0)}"

    def pid(self, machine):
        try:
            with open(f"{self.dir}/{machine}.pid") as f:
                pid = int(f.read())
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                return pid if f" --data {self.dir}/{machine} ".encode() in f.read().replace(b"\0", b" ") else None
        except (OSError, ValueError):
            return None

    def on(self, machine, *command, **more):
        return subprocess.run(["nsenter", f"--net=/run/netns/{self.prefix}-{machine}", *command], capture_output=True, text=True, **more)

    def start(self, machine):
        env = dict(os.environ, LAB=self.dir)
        if self.skew.get(machine):
            env["UNKAI_CLOCK_SKEW"] = f"{self.skew[machine]}s"
        subprocess.run([f"{self.root}/test/lab.sh", "start", machine], env=env, check=True, stdin=subprocess.DEVNULL)

    def signal(self, machine, what):
        """Reports whether there was somebody to send it to."""
        pid = self.pid(machine)
        if pid:
            os.kill(pid, what)
        return bool(pid)

    def qemus(self):
        """The lab's guests: server -> processes."""
        found = collections.defaultdict(list)
        for p in os.listdir("/proc"):
            if p.isdigit():
                try:
                    with open(f"/proc/{p}/cmdline", "rb") as f:
                        words = f.read().decode(errors="replace")
                    if "qemu-system" not in words.split("\0")[0]:
                        continue
                    with open(f"/proc/{p}/stat") as f:
                        stat = f.read().rsplit(")", 1)[1].split()
                    if stat[0] == "Z":
                        continue
                    found[words].append((int(p), int(stat[19])))
                except OSError:
                    continue
        return found

    def guest(self, server):
        """The QEMU processes of a server: pid, and when it started."""
        return [p for words, all_ in self.qemus().items() if server in words for p in all_]

    def watch(self, over):
        """Starts again whatever ended though nobody did it."""
        since = {}
        while not over.is_set():
            for m in self.controllers + self.hosts:
                if self.pid(m) or self.down[m]:
                    since.pop(m, None)
                elif m not in since:
                    since[m] = time.monotonic()
                elif time.monotonic() - since[m] > 1:
                    with open(f"{self.dir}/{m}.log", errors="replace") as f:
                        last = [line for line in f.read()[-20000:].splitlines() if any(w in line for w in ("no space", "unkai:", "panic", "FATAL", "fatal"))][-1:]
                    self.ended.append(f"{m} at {time.strftime('%T')}: {' '.join(last)[:300]}")
                    self.start(m)
                    since.pop(m)
            over.wait(0.3)


class Faults:
    """The faults of a seed, one beginning after the other; some overlap. Without seconds, every kind once within SHORT."""

    SHORT = 32.0

    def __init__(self, lab, random, seconds, small, say):
        self.lab, self.random, self.small, self.say = lab, random, small, say
        self.done, self.failed = collections.Counter(), []
        self.hit = collections.Counter()  # those that had somebody to hit: who is down already cannot be killed
        self.schedule = self.draw(seconds) if seconds else self.draw_short()

    def draw(self, seconds):
        random, schedule = self.random, []
        at = 3.0
        while True:
            kind = random.choices(list(self.kinds), [w for _, w in self.kinds.values()])[0]
            length = random.uniform(2, 14)
            if at + length > seconds:
                return schedule
            who = self.victim(kind)
            schedule.append((at, kind, who, length, random.random()))
            # Often one at a time; and often the next comes before this one is over.
            at += length + random.uniform(1, 6) if random.random() < 0.7 else random.uniform(1, length)

    def draw_short(self):
        """Each kind once, in an order of the seed's. One lasts into the next but not beyond, and the next hits another machine, so that
        none finds its victim down."""
        random, gap = self.random, 3.2
        while True:
            order = list(self.kinds)
            random.shuffle(order)
            victims = [self.victim(kind) for kind in order]
            if all(a != b for a, b in zip(victims, victims[1:])):
                break
        # extra is far from its middle, where a clock would be nearly right and from 0, where who is killed would be back at once.
        return [(2.0 + gap * n, kind, who, random.uniform(2.5, 2 * gap - 0.4), random.choice((random.uniform(0.3, 0.4), random.uniform(0.65, 1))))
                for n, (kind, who) in enumerate(zip(order, victims))]

    def victim(self, kind):
        lab, r = self.lab, self.random
        if kind in ("fill the disk",):
            return r.choice(self.small)
        if kind == "power off":
            return r.choice([a for a in lab.hosts if a not in lab.spared])
        if kind in ("kill host's agent",):
            return r.choice(lab.hosts)
        if kind in ("kill controller", "clock"):
            return r.choice(lab.controllers)
        return r.choice(lab.controllers * 2 + lab.hosts)

    def run(self, began, over):
        running = []
        for at, kind, who, length, extra in self.schedule:
            if over.wait(max(0, began + at - time.monotonic())):
                break
            self.done[kind] += 1
            self.say(f"{kind} {who} for {length:.1f} s")
            t = threading.Thread(target=self.one, args=(kind, who, length, extra, over))
            t.start()
            running.append(t)
        for t in running:
            t.join()

    def one(self, kind, who, length, extra, over):
        try:
            self.hit[kind] += bool(self.kinds[kind][0](self, who, length, extra, over))
        except Exception as e:
            self.failed.append(f"{kind} {who}: {type(e).__name__} {e}")

    def _down(self, who, length, over, before=lambda: None):
        lab = self.lab
        with lab.lock:
            lab.down[who] += 1
        hit = lab.signal(who, signal.SIGKILL)
        before()
        over.wait(length)
        with lab.lock:
            lab.down[who] -= 1
            if not lab.down[who] and not lab.pid(who):
                lab.start(who)
        return hit

    def kill(self, who, length, extra, over):
        return self._down(who, length * extra, over)

    def power(self, who, length, extra, over):
        def guests():
            mark = f"{self.lab.dir}/{who}/"
            for words, all_ in self.lab.qemus().items():
                if mark in words:
                    for pid, _ in all_:
                        os.kill(pid, signal.SIGKILL)
        return self._down(who, length, over, guests)

    def pause(self, who, length, extra, over):
        hit = self.lab.signal(who, signal.SIGSTOP)
        over.wait(length)
        return self.lab.signal(who, signal.SIGCONT) and hit

    def cut(self, who, length, extra, over):
        lab = self.lab
        others = [m for m in lab.controllers + lab.hosts if m != who]
        if extra > 0.6:  # only some
            others = [m for n, m in enumerate(others) if (int(extra * 1e6) >> n) & 1] or others[:1]
        how = list(CUTS)[int(extra * 1e4) % 3]
        self.nft(who, WHOLE + "add table inet chaos\n" + CUTS[how].format(peers=", ".join(map(lab.address, others))))
        over.wait(length)
        there = self.lab.on(who, "nft", "list", "table", "inet", "chaos").returncode == 0
        self.nft(who, WHOLE)
        return there and self.lab.pid(who)

    def nft(self, who, rules):
        done = self.lab.on(who, "nft", "-f", "-", input=rules)
        if done.returncode:
            raise RuntimeError(done.stderr)

    def slow(self, who, length, extra, over):
        rate = f"{int(100 + 900 * extra)}kbit"
        self.lab.on(who, "tc", "qdisc", "replace", "dev", "up0", "root", "handle", "1:", "htb", "default", "1", check=True)
        self.lab.on(who, "tc", "class", "replace", "dev", "up0", "parent", "1:", "classid", "1:1", "htb", "rate", rate, "burst", "2k", check=True)
        over.wait(length)
        there = self.lab.on(who, "tc", "qdisc", "del", "dev", "up0", "root").returncode == 0
        return there and self.lab.pid(who)

    def fill(self, who, length, extra, over):
        path, full = f"{self.lab.dir}/{who}/full", False
        with open(path, "wb", buffering=0) as f:
            try:
                while f.write(b"\0" * (1 << 20)):
                    pass
            except OSError as e:
                full = e.errno == errno.ENOSPC
        over.wait(length)
        os.unlink(path)
        return full

    def clock(self, who, length, extra, over):
        """It is started again under a clock that is wrong."""
        self.lab.skew[who] = int((extra - 0.5) * 120) or 1
        self._down(who, 0.2, over)
        end = time.monotonic() + 5
        while not (pid := self.lab.pid(who)):  # it becomes what it is to be a moment later
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        with open(f"/proc/{pid}/environ", "rb") as f:
            return f"UNKAI_CLOCK_SKEW={self.lab.skew[who]}s".encode() in f.read().split(b"\0")

    kinds = {
        "kill controller": (kill, 5),
        "kill host's agent": (kill, 3),
        "power off": (power, 1),
        "pause": (pause, 3),
        "cut": (cut, 5),
        "slow down": (slow, 2),
        "fill the disk": (fill, 2),
        "clock": (clock, 2),
    }

    def heal(self):
        lab = self.lab
        for m in lab.controllers + lab.hosts:
            self.nft(m, WHOLE)
            lab.on(m, "tc", "qdisc", "del", "dev", "up0", "root")
            lab.signal(m, signal.SIGCONT)
            full = f"{lab.dir}/{m}/full"
            if os.path.exists(full):
                os.unlink(full)
