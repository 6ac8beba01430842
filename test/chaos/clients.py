"""Clients of a cloud that is made to suffer. Each owns what it makes, and knows of each thing what the cloud has acknowledged; so
each answer, and what is there at the end, can be held against that."""

import base64
import collections
import http.client
import json
import struct
import threading
import time
import uuid

AGAIN = (500, 502, 503, 504)


class Cloud:
    """How to ask: whichever controller answers."""

    def __init__(self, controllers, token):
        self.controllers, self.token = controllers, token
        self.lock = threading.Lock()
        self.tried_again = collections.Counter()
        self.odd = collections.Counter()  # answers that are nobody's fault but the cloud's
        self.wrong = []  # promises broken
        self.acknowledged = []  # when, of writes
        self.healed = None  # when the last fault was over

    def once(self, address, method, path, body=None, key=None):
        """One request: its status, answer, and whether the answer may be old; status 0 and what went wrong when there is none."""
        headers = {"X-Auth-Token": self.token, "Content-Type": "application/json", "X-OpenStack-Nova-API-Version": "2.60"}
        if key:
            headers["Idempotency-Key"] = key
        connection = http.client.HTTPConnection(address, 8700, timeout=15)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in b"{[" and text else text, answer.getheader("Unkai-Stale") == "true"
        except (OSError, http.client.HTTPException, ValueError) as e:
            return 0, type(e).__name__, False
        finally:
            connection.close()

    def broken(self, what):
        with self.lock:
            self.wrong.append(what)
            print("BROKEN:", what, flush=True)


class GaveUp(Exception):
    pass


class Client(threading.Thread):
    """One client: until told to stop it makes, changes and deletes what is its own."""

    def __init__(self, cloud, name, random, image, network, until, patience, most_servers):
        super().__init__(name=name, daemon=True)
        self.cloud, self.random, self.image, self.network, self.until, self.most_servers = cloud, random, image, network, until, most_servers
        self.things = {}  # path -> what was acknowledged of it: None when it was deleted
        self.counts = collections.Counter()
        self.patience = patience  # beyond the last fault
        self.number = 0

    def write(self, method, path, body=None):
        """A request until it is answered for good. Creating is made safe to repeat by a key, the rest is by nature: then a
        repeated delete finds nothing. Answers the status, the answer, and how often it was sent."""
        key = str(uuid.UUID(int=self.random.getrandbits(128))) if method == "POST" else None
        tries, first = 0, time.monotonic()
        while True:
            tries += 1
            status, answer, _ = self.cloud.once(self.random.choice(self.cloud.controllers), method, path, body, key)
            with self.cloud.lock:
                if status and status < 300:
                    self.cloud.acknowledged.append(time.monotonic())
                if not status or status in AGAIN:
                    self.cloud.tried_again[str(status or answer)] += 1
                if status == 500:
                    self.cloud.odd[f"{method} {path.split('/')[1]}: {str(answer)[:160]}"] += 1
            healed = self.cloud.healed
            if healed and time.monotonic() > max(healed, first) + self.patience:
                raise GaveUp(f"{method} {path}: {status} {answer}")
            if status and status not in AGAIN:
                self.counts[method] += 1
                return status, answer, tries
            time.sleep(self.random.uniform(0.05, 0.4))

    def made(self, collection, kind, wish, status_wanted=(200, 201, 202)):
        status, answer, tries = self.write("POST", collection, {kind: wish})
        if status not in status_wanted:
            self.cloud.broken(f"{self.name}: POST {collection} is answered {status} {answer} at try {tries}")
            return None
        thing = answer[kind]
        path = f"{collection}/{thing.get('id') or thing['name']}" if kind != "keypair" else f"{collection}/{thing['name']}"
        if path in self.things:
            self.cloud.broken(f"{self.name}: {path} was made twice")
        self.things[path] = {"kind": kind, "name": wish["name"]}
        self.see(path)
        return path

    def changed(self, path, wish):
        kind = self.things[path]["kind"]
        status, answer, tries = self.write("PUT", path, {kind: wish})
        if status == 404:
            self.cloud.broken(f"{self.name}: {path} was acknowledged, and is not there at a change (try {tries})")
        elif status < 300:
            self.things[path].update(wish)
            self.see(path)
        elif status != 409:
            self.cloud.broken(f"{self.name}: PUT {path} is answered {status} {answer}")

    def deleted(self, path):
        status, answer, tries = self.write("DELETE", path)
        if status == 404 and tries == 1:
            self.cloud.broken(f"{self.name}: {path} was acknowledged, and is not there at its delete")
        if status < 300 or status == 404:
            if self.things[path]["kind"] != "server":
                self.things[path] = None
                self.see(path)
            else:
                self.things[path] = None
        elif status != 409:
            self.cloud.broken(f"{self.name}: DELETE {path} is answered {status} {answer}")

    def see(self, path):
        """What was just acknowledged any controller shows, or says that it may be old."""
        status, answer, stale = self.cloud.once(self.random.choice(self.cloud.controllers), "GET", path)
        if not status or status in AGAIN or stale:
            return
        self.counts["GET"] += 1
        want = self.things[path]
        if want is None and status != 404 or want is not None and status != 200:
            self.cloud.broken(f"{self.name}: {path} is answered {status}, after {want} was acknowledged")
        elif want and answer[want["kind"]]["name"] != want["name"]:
            self.cloud.broken(f"{self.name}: {path} is called {answer[want['kind']]['name']}, after {want['name']} was acknowledged")

    def next_name(self):
        self.number += 1
        return f"{self.name}-{self.number}"

    def mine(self, kind):
        return [p for p, t in self.things.items() if t and t["kind"] == kind]

    def act(self):
        r = self.random
        networks, ports, keys, servers = (self.mine(k) for k in ("network", "port", "keypair", "server"))
        kind = r.choices(("network", "port", "keypair", "server"), (4, 4, 2, 1))[0]
        if kind == "network":
            if networks and r.random() < 0.4:
                self.changed(r.choice(networks), {"name": self.next_name()})
            elif len(networks) > 5:
                path = r.choice(networks)
                for p in [p for p in ports if self.things[p]["network"] == path]:
                    self.deleted(p)
                self.deleted(path)
            else:
                self.made("/network/v2.0/networks", "network", {"name": self.next_name()})
        elif kind == "port" and networks:
            if ports and r.random() < 0.4:
                self.changed(r.choice(ports), {"name": self.next_name()})
            elif len(ports) > 12:
                self.deleted(r.choice(ports))
            else:
                network = r.choice(networks)
                path = self.made("/network/v2.0/ports", "port", {"name": self.next_name(), "network_id": network.rsplit("/", 1)[1]})
                if path:
                    self.things[path]["network"] = network
        elif kind == "keypair":
            if len(keys) > 4:
                self.deleted(r.choice(keys))
            else:
                self.made("/compute/v2.1/os-keypairs", "keypair", {"name": self.next_name(), "public_key": public_key(r)})
        elif kind == "server":
            if servers and (len(servers) >= self.most_servers or r.random() < 0.5):
                path = r.choice(servers)
                what = r.choice(("delete", "os-stop", "os-start", "pause", "unpause", "reboot"))
                if what == "delete":
                    self.deleted(path)
                    return
                status, answer, _ = self.write("POST", path + "/action", {what: {"type": "HARD"} if what == "reboot" else None})
                if status not in (202, 409):
                    self.cloud.broken(f"{self.name}: {what} of {path} is answered {status} {answer}")
            elif len(servers) < self.most_servers:
                self.made("/compute/v2.1/servers", "server", {"name": self.next_name(), "imageRef": self.image, "flavorRef": "42",
                                                              "networks": [{"uuid": self.network}]})

    def run(self):
        try:
            while time.monotonic() < self.until:
                self.act()
                time.sleep(self.random.uniform(0.02, 0.15))
        except GaveUp as e:
            self.cloud.broken(f"{self.name}: not answered within {self.patience} s of the last fault: {e}")
        except Exception as e:  # what a client did not foresee must not pass for success
            self.cloud.broken(f"{self.name}: {type(e).__name__} {e}")
            raise


def public_key(random):
    def text(b):
        return struct.pack(">I", len(b)) + b
    return "ssh-ed25519 " + base64.b64encode(text(b"ssh-ed25519") + text(random.randbytes(32))).decode() + " chaos"
