"""Serves DIR as the OpenStack or the EC2 metadata service on a free port of loopback, for test.sh.

usage: metadata_server.py DIR openstack|ec2 [ADDRESS PORT]    prints the port
"""

import http.server
import pathlib
import socket
import sys

root, dialect = pathlib.Path(sys.argv[1]), sys.argv[2]
TOKEN = "a-session-token"
EC2 = {
    "/latest/meta-data/instance-id": "i-0123456789abcdef0",
    "/latest/meta-data/local-hostname": "ip-10-0-0-9.internal",
    "/latest/meta-data/public-keys/": "0=mine",
}


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def file(self, name):
        path = root / name
        self.answer(200, path.read_bytes()) if path.exists() else self.answer(404)

    def do_PUT(self):
        if dialect == "ec2" and self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
            self.answer(200, TOKEN.encode())
        else:
            self.answer(404)

    def do_GET(self):
        if dialect == "openstack":
            if self.path.startswith("/openstack/latest/"):
                return self.file(self.path.rsplit("/", 1)[1])
        elif self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            return self.answer(401)
        elif self.path in EC2:
            return self.answer(200, EC2[self.path].encode())
        elif self.path == "/latest/meta-data/public-keys/0/openssh-key":
            return self.file("openssh-key")
        elif self.path == "/latest/user-data":
            return self.file("user-data")
        self.answer(404)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


address, port = sys.argv[3:] or ("::ffff:127.0.0.1", "0")
server = Server(socket.getaddrinfo(address, int(port), socket.AF_INET6, socket.SOCK_STREAM)[0][4], Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
