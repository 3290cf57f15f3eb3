#!/usr/bin/env python3
"""sbom.py CARGO_TOML CARGO_LOCK: what the binary was made of, as CycloneDX 1.6: every crate of the lock file with its sum.

It names more than is linked (tests' crates too), and never less.
"""
import json
import sys
import tomllib

manifest, lock = sys.argv[1:]
with open(manifest, "rb") as file:
    version = tomllib.load(file)["workspace"]["package"]["version"]
with open(lock, "rb") as file:
    packages = tomllib.load(file)["package"]


def component(package):
    name, release = package["name"], package["version"]
    found = {
        "type": "library",
        "name": name,
        "version": release,
        "purl": f"pkg:cargo/{name}@{release}",
        "bom-ref": f"{name}@{release}",
    }
    if "checksum" in package:
        found["hashes"] = [{"alg": "SHA-256", "content": package["checksum"]}]
    return found


json.dump(
    {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "pathwatch", "version": version}},
        "components": [component(package) for package in packages],
    },
    sys.stdout,
    indent=1,
)
