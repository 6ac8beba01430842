"""Chaos on a lab: clients make, change and delete things while its machines are killed, paused, cut off, slowed down, filled up and
told the wrong time, as a seed has it. At the end nothing that was acknowledged may be lost, nothing there twice, no guest disturbed
whose host kept its power, and the audit clean within a minute of the end of the last fault.

    python3 -B test/chaos LAB SECONDS|short SEED NET PREFIX CONTROLLERS HOSTS SMALL…

"short" is half a minute in which every kind of fault comes once; it fails when one did not, or hit nobody.
"""

import collections
import json
import os
import random
import subprocess
import sys
import threading
import time

from clients import AGAIN, Client, Cloud
from faults import Faults, Lab

directory, seed, net, prefix = sys.argv[1], sys.argv[3], sys.argv[4], sys.argv[5]
short = sys.argv[2] == "short"
seconds = Faults.SHORT if short else float(sys.argv[2])
controllers, hosts, small = int(sys.argv[6]), int(sys.argv[7]), sys.argv[8:]
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
clients = int(os.environ.get("CLIENTS", "4"))
token, image, guest, network = (os.environ[k] for k in ("TOKEN", "BLANK", "GUEST_IMAGE", "NETWORK"))
AUDITED_WITHIN = 60  # of the end of the last fault, whatever the clients still wait for; and so long a client waits for its last answer
SETTLED_WITHIN = 120  # of the end of the last client: a guest that is told to shut down has a minute until it is powered off

begun = time.monotonic()


def say(*words):
    print(f"{time.monotonic() - begun:6.1f}s ", *words, flush=True)


def until(within, what, ask, since=None):
    """Waits until ask answers nothing wrong, and answers how long after since (now, when it is not said) that was. An answer that comes
    too late is none."""
    since, last = since or time.monotonic(), None
    while True:
        wrong = ask()
        took = time.monotonic() - since
        if wrong and wrong != last:
            say(what + ":", wrong)
            last = wrong
        if took > within:
            cloud.broken(f"{what} after {within} s: {wrong or f'it was only after {took:.1f} s'}")
        if not wrong or took > within:
            return took
        time.sleep(0.5)


def get(path, machine=None):
    """An answer that is not old."""
    end = time.monotonic() + 30
    while True:
        status, answer, stale = cloud.once(lab.address(machine or lab.controllers[0]), "GET", path)
        if status == 200 and not stale:
            return answer
        if time.monotonic() > end:
            raise RuntimeError(f"GET {path}: {status} {answer}")
        time.sleep(0.3)


def unkai(machine, *command):
    command = [os.environ["UNKAI"], *command, "--data", f"{directory}/{machine}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer in 20 s")


lab = Lab(root, directory, net, prefix, controllers, hosts, [])
cloud = Cloud([lab.address(c) for c in lab.controllers], token)

# --- guests that are watched: each says on its console when it boots, and then that it lives
SCRIPT = "#!/bin/sh\necho BOOT $(cat /proc/sys/kernel/random/boot_id) >/dev/console\n(while :; do echo ALIVE $(cut -d' ' -f1 /proc/uptime) >/dev/console; sleep 2; done) &\n"
watched = {}
if guest:
    import base64
    for n in range(2):
        status, answer, _ = cloud.once(cloud.controllers[0], "POST", "/compute/v2.1/servers", {"server": {
            "name": f"watched-{n}", "imageRef": guest, "flavorRef": "42", "networks": [{"uuid": network}],
            "user_data": base64.b64encode(SCRIPT.encode()).decode()}})
        if status != 202:
            sys.exit(f"no guest: {status} {answer}")
        watched[answer["server"]["id"]] = None


def console(server):
    status, answer, _ = cloud.once(cloud.controllers[0], "POST", f"/compute/v2.1/servers/{server}/action", {"os-getConsoleOutput": {"length": 4000}})
    return answer["output"] if status == 200 else ""


for server in watched:
    until(150, f"guest {server} does not boot", lambda: "ALIVE" not in console(server))
    text = console(server)
    boots = [line.split()[1] for line in text.splitlines() if line.startswith("BOOT ")]
    host = get(f"/compute/v2.1/servers/{server}")["server"]["OS-EXT-SRV-ATTR:host"]
    watched[server] = {"process": lab.guest(server), "boots": boots, "host": host}
    lab.spared.append(host)
if watched:
    say("guests that are watched:", ", ".join(f"on {w['host']}" for w in watched.values()))
if set(lab.spared) >= set(lab.hosts):
    sys.exit("the watched guests are on all hosts")

# --- faults and clients
over = threading.Event()
began = time.monotonic()
faults = Faults(lab, random.Random(f"faults {seed}"), None if short else seconds, small, say)
crowd = [Client(cloud, f"x{seed}-{n}", random.Random(f"client {n} {seed}"), image, network, began + seconds, AUDITED_WITHIN, 2) for n in range(clients)]
watcher = threading.Thread(target=lab.watch, args=(over,), daemon=True)
watcher.start()
for c in crowd:
    c.start()
faults.run(began, over)
for what in faults.failed:
    cloud.broken(f"the fault itself failed: {what}")
faults.heal()
stopped = cloud.healed = time.monotonic()
say("the faults are over")

# --- everything settles


def unsettled():
    for m in lab.controllers:
        done = unkai(m, "audit")
        if done.returncode:
            return f"the audit of {m}: {(done.stdout + done.stderr).strip()[:600]}"
    return None


# It is asked from that moment on, while clients go on.
audited = until(AUDITED_WITHIN, "the audit is not clean", unsettled, stopped)
for c in crowd:
    c.join()
done = time.monotonic()
say("the clients are done")
wrong = unsettled()
if wrong:
    cloud.broken(f"the audit is not clean when the clients are done: {wrong}")


def moving():
    answer = get("/compute/v2.1/servers/detail?all_tenants=1")
    busy = [f"{s['id']} {s['status']} {s['OS-EXT-STS:task_state']} {s['OS-EXT-SRV-ATTR:host']}" for s in answer["servers"] if s["OS-EXT-STS:task_state"] or s["status"] in ("BUILD", "UNKNOWN")]
    told = unkai(lab.controllers[0], "status", "--json")
    if told.returncode:
        return [f"no status: {told.stderr.strip()}"]
    lost = [h["Name"] for h in json.loads(told.stdout)["Hosts"] if not h["Up"]]
    return busy + lost


settled = done - stopped + until(SETTLED_WITHIN, "servers and hosts are not settled", moving, done)

# --- what is there is what was acknowledged, on each controller
want = collections.defaultdict(dict)
for c in crowd:
    for path, thing in c.things.items():
        if thing:
            want[thing["kind"]][path.rsplit("/", 1)[1]] = thing["name"]
lists = {"network": "/network/v2.0/networks?fields=id&fields=name", "port": "/network/v2.0/ports?fields=id&fields=name",
         "server": "/compute/v2.1/servers/detail", "keypair": "/compute/v2.1/os-keypairs"}
statuses = collections.Counter()
for m in lab.controllers:
    for kind, path in lists.items():
        have = {}
        for thing in get(path, m)[kind + "s"]:
            thing = thing.get("keypair", thing)
            if not thing["name"].startswith(f"x{seed}-"):
                continue
            name = thing.get("id") if kind != "keypair" else thing["name"]
            have[name] = thing["name"]
            if kind == "server" and m == lab.controllers[0]:
                statuses[thing["status"]] += 1
                guests = lab.guest(thing["id"])
                if len(guests) > 1 or len(guests) != (thing["status"] in ("ACTIVE", "PAUSED")):
                    cloud.broken(f"server {thing['id']} is {thing['status']} and has {len(guests)} processes")
        for name in want[kind].keys() - have.keys():
            cloud.broken(f"{kind} {name} ({want[kind][name]}) was acknowledged, and {m} does not show it")
        for name in have.keys() - want[kind].keys():
            cloud.broken(f"{kind} {name} ({have[name]}) is there on {m}, and nobody was told so, or it was deleted")
        for name in have.keys() & want[kind].keys():
            if have[name] != want[kind][name]:
                cloud.broken(f"{kind} {name} is called {have[name]} on {m}, and {want[kind][name]} was acknowledged")
for c in crowd:
    for path, thing in c.things.items():
        if thing is None and "/servers/" in path and lab.guest(path.rsplit("/", 1)[1]):
            cloud.broken(f"{path} was deleted, and its process runs")

# --- the guests that were watched
for server, was in watched.items():
    if lab.guest(server) != was["process"]:
        cloud.broken(f"guest {server} on {was['host']} has another process: {was['process']}, {lab.guest(server)}")
    last = console(server)
    time.sleep(4)
    now = console(server)
    if any(line.startswith("BOOT ") and line.split()[1] not in was["boots"] for line in now.splitlines()):
        cloud.broken(f"guest {server} was booted again")
    if now == last:
        cloud.broken(f"guest {server} says nothing any more")

cloud.acknowledged.sort()
silence, silent = max(((b - a, a - begun) for a, b in zip(cloud.acknowledged, cloud.acknowledged[1:])), default=(0, 0))
counts = sum((c.counts for c in crowd), collections.Counter())
say("faults:  ", f"{'kind':20}{'drawn':>6}{'hit':>6}")
for kind in faults.kinds:
    say("         ", f"{kind:20}{faults.done[kind]:6}{faults.hit[kind]:6}")
    if short and not faults.hit[kind]:
        cloud.broken(f"no {kind}: it was drawn {faults.done[kind]} times, and hit nobody")
if short and not cloud.tried_again:
    cloud.broken("no client felt any of the faults")
say(f"{len(cloud.acknowledged)} writes acknowledged, {counts['GET']} reads held against them; requests by method: {dict(counts)}")
say("tried again:", dict(cloud.tried_again), f"; the longest time without an acknowledged write {silence:.1f} s, from {silent:.1f}s on")
say("there at the end:", {k: len(v) for k, v in want.items()}, "servers:", dict(statuses))
say(f"after the last fault: audit clean on all within {audited:.1f} s, all settled within {settled:.1f} s")
for what in lab.ended:
    say("ended by itself, and was started again:", what)
for what, n in cloud.odd.items():
    say(f"answered 500, {n} times: {what}")
over.set()
watcher.join()
if cloud.wrong:
    say(f"{len(cloud.wrong)} promises broken with seed {seed}:")
    for what in cloud.wrong[:20]:
        print("   ", what)
    sys.exit(1)
say(f"every promise was kept (seed {seed})")
