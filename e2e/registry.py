"""A container registry of one image, busybox:latest, made of one static program. Usage: registry.py BUSYBOX PORT"""
import gzip, hashlib, http.server, io, json, sys, tarfile

busybox, port = sys.argv[1], int(sys.argv[2])
tar = io.BytesIO()
with tarfile.open(fileobj=tar, mode="w") as files:
    for name in ["bin", "etc", "tmp"]:
        directory = tarfile.TarInfo(name)
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        files.addfile(directory)
    files.add(busybox, "bin/busybox")
    for name in ["sh", "true", "cat", "ls", "sleep"]:
        link = tarfile.TarInfo(f"bin/{name}")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        files.addfile(link)

blobs = {}


def blob(kind, data):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    blobs[digest] = (kind, data)
    return {"mediaType": kind, "digest": digest, "size": len(data)}


layer = blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(tar.getvalue(), mtime=0))
diff = "sha256:" + hashlib.sha256(tar.getvalue()).hexdigest()
config = {
    "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
    "rootfs": {"type": "layers", "diff_ids": [diff]},
}
config = blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
kind = "application/vnd.oci.image.manifest.v1+json"
manifest = blob(kind, json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}).encode())
blobs["latest"] = blobs[manifest["digest"]]


class Registry(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = blobs.get(self.path.split("/")[-1])
        if self.path.rstrip("/") == "/v2":
            found = ("application/json", b"{}")
        self.send_response(200 if found else 404)
        if found:
            kind, data = found
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(data).hexdigest())
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", port), Registry).serve_forever()
