"""Holds a TCP connection to an echo service and writes down when each answer came, one time a line. It ends with the connection."""
import socket
import sys
import time

s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
n, pending = 0, b""
s.settimeout(30)
while True:
    n += 1
    s.sendall(b"%d\n" % n)
    while b"\n" not in pending:
        part = s.recv(4096)
        if not part:
            sys.exit("the connection was closed")
        pending += part
    line, pending = pending.split(b"\n", 1)
    if int(line) != n:
        sys.exit(f"{line} came for {n}")
    print(f"{time.time():.3f}", flush=True)
    time.sleep(0.05)
