"""Clients of a cloud whose controllers come and go, for cluster.sh and upgrade.sh: each makes things of one kind, one after the other, each
with an idempotency key, and goes on to the next controller when one does not answer. Networks stay; ports, key pairs and servers are taken
away again. What was acknowledged is printed, one JSON object, at the end.

    [LOAD_KINDS=networks,keypairs,…] [LOAD_READS=1] cluster_load.py TOKEN NAME SECONDS CLIENTS URL…

With LOAD_READS each thing is read at the next controller as soon as it is acknowledged, and has to be there; answers that may be old are counted.
"""

import http.client
import json
import os
import sys
import threading
import time
import uuid

token, run, seconds, clients, urls = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
kinds = os.environ.get("LOAD_KINDS", "networks").split(",")
network, image = os.environ.get("LOAD_NETWORK"), os.environ.get("LOAD_IMAGE")
end = time.monotonic() + seconds
reads = os.environ.get("LOAD_READS")
acknowledged, counts, refused, times, slowest, gave_up, stale = [], {}, {}, [], (0.0, ""), [], []
lock = threading.Lock()

# Of each kind: where it is made, what is asked, the answer that acknowledges it, and what names it in a path.
made = {
    "networks": ("/network/v2.0/networks", lambda name: {"network": {"name": name}}, lambda a: a["network"]["id"]),
    "ports": ("/network/v2.0/ports", lambda name: {"port": {"name": name, "network_id": network}}, lambda a: a["port"]["id"]),
    "keypairs": ("/compute/v2.1/os-keypairs", lambda name: {"keypair": {"name": name}}, lambda a: a["keypair"]["name"]),
    "servers": ("/compute/v2.1/servers", lambda name: {"server": {"name": name, "imageRef": image, "flavorRef": "42", "networks": "none"}},
                lambda a: a["server"]["id"]),
}


def once(url, method, path, body, key):
    """One request; the status, or what went wrong with it, and the answer."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        headers = {"X-Auth-Token": token, "Content-Type": "application/json", "X-OpenStack-Nova-API-Version": "2.37"}
        if key:
            headers["Idempotency-Key"] = key
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        if answer.headers.get("Unkai-Stale"):
            with lock:
                stale.append(f"{method} {path} of {url}, answered at {time.strftime('%H:%M:%S')}")
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as e:
        return type(e).__name__, b""
    finally:
        connection.close()


def persist(at, method, path, body, good):
    """The request until it is answered; the controller that did, and its answer, or None when time is up."""
    global slowest
    key = str(uuid.uuid4()) if method == "POST" else None
    began = time.monotonic()
    while True:
        status, answer = once(urls[at % len(urls)], method, path, body, key)
        if status in good:
            took = time.monotonic() - began
            what = f"{method} {path} of {urls[at % len(urls)]}, answered at {time.strftime('%H:%M:%S')}"
            if took > 2:
                print(f"{took:.2f} s: {what}", file=sys.stderr)
            with lock:
                times.append(time.monotonic())
                slowest = max(slowest, (took, what))
            return at, answer
        if isinstance(status, int) and status not in (500, 502, 503, 504):
            print(f"{method} {path} of {urls[at % len(urls)]} is refused with {status} after {time.monotonic() - began:.2f} s at {time.strftime('%H:%M:%S')}: {answer[:300]}; stale: {stale}", file=sys.stderr)
            os._exit(1)
        with lock:
            refused[str(status)] = refused.get(str(status), 0) + 1
        print(f"{status} after {time.monotonic() - began:.2f} s: {method} {path} of {urls[at % len(urls)]}, at {time.strftime('%H:%M:%S')}: {answer[:300]}", file=sys.stderr)
        if time.monotonic() > end + 30:
            with lock:
                gave_up.append(f"{method} {path}")
            return at, None
        at += 1
        time.sleep(0.05)


def client(number):
    kind = kinds[number % len(kinds)]
    path, body, name_of = made[kind]
    at = number
    count = 0
    while time.monotonic() < end:
        count += 1
        name = f"{run}-{number}-{count}"
        at, answer = persist(at, "POST", path, body(name), (200, 201, 202))
        if answer is None:
            return  # it stays unacknowledged
        with lock:
            counts[kind] = counts.get(kind, 0) + 1
            if kind == "networks":
                acknowledged.append(name)
        thing = path + "/" + name_of(json.loads(answer))
        if reads:
            persist(at + 1, "GET", thing, None, (200,))
        if kind == "servers":
            time.sleep(1)
        if kind != "networks":
            persist(at + 1, "DELETE", thing, None, (202, 204, 404))


threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
for t in threads:
    t.start()
for t in threads:
    t.join()
times.sort()
gap = max((b - a for a, b in zip(times, times[1:])), default=0)
print(json.dumps({"acknowledged": acknowledged, "made": counts, "tried_again": refused, "longest_silence_s": round(gap, 2),
                  "slowest_s": round(slowest[0], 2), "slowest": slowest[1], "gave_up": gave_up, "stale": stale}))
