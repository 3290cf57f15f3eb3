#!/usr/bin/env python3
"""notices.py   the licences of every crate that is linked into the sensor, as cargo knows them, with the texts that their sources carry."""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE")


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def linked():
    """Names and versions of what the binary is made of, build scripts and macros left out."""
    tree = cargo("tree", "--locked", "-p", "sensor", "-e", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}")
    return {tuple(line.split()[:2]) for line in tree.splitlines() if line}


def main():
    wanted = linked()
    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1"))
    members = set(metadata["workspace_members"])
    packages = [p for p in metadata["packages"] if p["id"] not in members and (p["name"], "v" + p["version"]) in wanted]
    print(f"Pathwatch contains these {len(packages)} libraries. Their licences follow.\n")
    texts = {}
    for package in sorted(packages, key=lambda p: (p["name"], p["version"])):
        name = f"{package['name']} {package['version']}"
        print(f"{name}: {package['license'] or 'see below'}")
        source = Path(package["manifest_path"]).parent
        for file in sorted(source.iterdir()):
            if file.is_file() and file.name.upper().startswith(TEXTS):
                texts.setdefault(file.read_text(errors="replace").strip(), []).append(name)
    missing = [p["name"] for p in packages if not p["license"] and not p["license_file"]]
    if missing:
        sys.exit(f"notices: no licence is known of {', '.join(missing)}")
    for text, names in texts.items():
        print(f"\n{'=' * 100}\n{', '.join(names)}\n{'=' * 100}\n{text}")


if __name__ == "__main__":
    main()
