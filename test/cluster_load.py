"""Clients of several controllers, for cluster.sh: each makes networks, one after the other, each with an idempotency key, and
goes on to the next controller when one does not answer. What was acknowledged is printed, one JSON object, at the end.

    cluster_load.py TOKEN NAME SECONDS CLIENTS URL…
"""

import http.client
import json
import sys
import threading
import time
import uuid

token, run, seconds, clients, urls = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
end = time.monotonic() + seconds
acknowledged, refused, times = [], {}, []
lock = threading.Lock()


def once(url, name, key):
    """One request; the status, or what went wrong with it."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=15)
    try:
        connection.request("POST", "/network/v2.0/networks", json.dumps({"network": {"name": name}}),
                           {"X-Auth-Token": token, "Content-Type": "application/json", "Idempotency-Key": key})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException) as e:
        return type(e).__name__
    finally:
        connection.close()


def client(number):
    at = number
    count = 0
    while time.monotonic() < end:
        count += 1
        name, key = f"{run}-{number}-{count}", str(uuid.uuid4())
        while True:
            status = once(urls[at % len(urls)], name, key)
            if status == 201:
                with lock:
                    acknowledged.append(name)
                    times.append(time.monotonic())
                break
            if isinstance(status, int) and status not in (500, 502, 503, 504):
                print(f"a network is refused with {status}", file=sys.stderr)
                sys.exit(1)
            with lock:
                refused[str(status)] = refused.get(str(status), 0) + 1
            if time.monotonic() > end + 30:
                return  # it stays unacknowledged
            at += 1
            time.sleep(0.05)


threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
for t in threads:
    t.start()
for t in threads:
    t.join()
times.sort()
gap = max((b - a for a, b in zip(times, times[1:])), default=0)
print(json.dumps({"acknowledged": acknowledged, "tried_again": refused, "longest_silence_s": round(gap, 2)}))
