#!/usr/bin/env python3
"""docs.py BINARY   runs every fenced command of README.md, docs/ and the chart's README, each page in a directory of its own, in which
`policies`, `charts` and `pathwatch` are. A comment before a block says what is special:
  <!-- not run: REASON -->        why it is not
  <!-- run for: 5s -->            it goes on until it is stopped, and must end well
  <!-- beside a sensor -->        a sensor runs meanwhile, at work on ./policies
  <!-- needs: FILE... -->         recordings and alerts that a reader has from somewhere
Also follows every link to a file of the project. Needs root, as the commands do."""
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Fences of what is no command; any other word is a mistake.
NO_COMMANDS = {"", "text", "yaml", "json", "ini", "kusto"}
FENCE = re.compile(r"^ *```(\S*)$", re.M)
BLOCK = re.compile(r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<kind>sh|console)\n(?P<text>.*?)^```$", re.M | re.S)
NOTE = re.compile(r"(?P<word>not run|run for|beside a sensor|needs)(?:: (?P<rest>.*))?$")
PATIENCE = 120
# Of what a command has said, the end.
SHOWN = 2000


class Fault(Exception):
    pass


def pages():
    chart = ROOT / "charts/pathwatch/README.md"
    return [ROOT / "README.md", chart, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text):
    """(line, note, commands) of every block."""
    for found in BLOCK.finditer(text):
        line = text[: found.start("text")].count("\n")
        commands = found["text"]
        if found["kind"] == "console":
            # What begins with a dollar is typed; the rest is the answer.
            commands = "".join(row[2:] + "\n" for row in commands.splitlines() if row.startswith("$ "))
        yield line, found["note"], commands


def links(page, text):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        if "://" not in target and not (page.parent / target).exists():
            raise Fault(f"a link to {target}, which is not there")


class Place:
    """A directory in which a page's commands are run, one after the other."""

    def __init__(self, binary):
        self.directory = tempfile.TemporaryDirectory(prefix="pathwatch-docs-")
        self.path = Path(self.directory.name)
        for name in ("policies", "charts"):
            (self.path / name).symlink_to(ROOT / name)
        bin_ = self.path / ".bin"
        bin_.mkdir()
        (bin_ / "pathwatch").symlink_to(binary)
        sudo = bin_ / "sudo"
        sudo.write_text('#!/bin/sh\nexec "$@"\n')
        sudo.chmod(0o755)
        # Of a sensor that runs here otherwise nothing is asked.
        socket = {"PATHWATCH__HTTP__SOCKET": str(self.path / ".sock")}
        self.environment = {**os.environ, **socket, "PATH": f"{bin_}:{os.environ['PATH']}"}

    def run(self, commands, seconds=None):
        script = f"set -euo pipefail\n{commands}"
        process = subprocess.Popen(["bash", "-c", script], cwd=self.path, env=self.environment, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=seconds or PATIENCE)
            ended = process.returncode
            if seconds:
                raise Fault(f"it was to go on, and ended with {ended}:\n{output[-SHOWN:]}")
        except subprocess.TimeoutExpired:
            if not seconds:
                os.killpg(process.pid, 9)
                raise Fault(f"not done after {PATIENCE} s") from None
            os.killpg(process.pid, 2)
            output, _ = process.communicate(timeout=PATIENCE)
            ended = 0 if process.returncode in (0, 130, -2) else process.returncode
        if ended != 0:
            raise Fault(f"it ended with {ended}:\n{output[-SHOWN:]}")
        return output

    def need(self, names):
        """What a reader has: a recording of this machine's, and the alerts that it raises."""
        if "opens.jsonl" in names:
            self.run("pathwatch trace --record opens.jsonl >/dev/null & pid=$!\n"
                     "until grep -q /etc/shadow opens.jsonl; do cat /etc/shadow >/dev/null; sleep 0.2; done 2>/dev/null\n"
                     "kill -INT $pid; wait $pid")
        if "alerts.jsonl" in names:
            self.run("pathwatch replay opens.jsonl --policies policies >alerts.jsonl")

    def beside_a_sensor(self, commands):
        with open(self.path / ".log", "w") as log:
            sensor = subprocess.Popen([self.path / ".bin/pathwatch", "run"], cwd=self.path, env=self.environment,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        try:
            end = time.time() + PATIENCE
            while subprocess.run([self.path / ".bin/pathwatch", "status"], env=self.environment, capture_output=True, check=False).returncode != 0:
                if time.time() > end or sensor.poll() is not None:
                    raise Fault("no sensor: " + (self.path / ".log").read_text())
                time.sleep(0.1)
            self.run(commands)
        finally:
            sensor.terminate()
            sensor.wait(timeout=PATIENCE)


def check(page, text, place):
    """Runs a page; returns how many blocks were run, and how many were not."""
    ran = left = 0
    links(page, text)
    for kind in FENCE.findall(text):
        if kind not in NO_COMMANDS | {"sh", "console"}:
            raise Fault(f"nobody knows whether '{kind}' is a command")
    for line, note, commands in blocks(text):
        word, rest = None, None
        if note:
            found = NOTE.match(note)
            if not found:
                raise Fault(f"line {line}: unknown note '{note}'")
            word, rest = found["word"], found["rest"]
        try:
            if word == "not run":
                if not rest:
                    raise Fault("no reason is given")
                left += 1
                continue
            if word == "run for":
                place.run(commands, seconds=float(rest.removesuffix("s")))
            elif word == "beside a sensor":
                place.beside_a_sensor(commands)
            else:
                place.need((rest or "").split())
                place.run(commands)
            ran += 1
        except Fault as why:
            raise Fault(f"line {line}: {why}") from None
    return ran, left


PLANTED = {
    "a command that fails": "```sh\nfalse\n```\n",
    "a command in the middle": "```sh\nfalse\ntrue\n```\n",
    "a pipe": "```sh\nfalse | cat\n```\n",
    "a console": "```console\n$ false\n```\n",
    "no reason": "<!-- not run: -->\n```sh\ntrue\n```\n",
    "an unknown note": "<!-- skip -->\n```sh\ntrue\n```\n",
    "one that should go on": "<!-- run for: 1s -->\n```sh\ntrue\n```\n",
    "a link": "[x](no/such/file.md)\n",
    "a fence of another name": "```bash\nfalse\n```\n",
}


def main():
    binary = Path(sys.argv[1]).resolve()
    for name, text in PLANTED.items():
        try:
            check(ROOT / "README.md", text, Place(binary))
        except Fault:
            continue
        sys.exit(f"docs: FAILED: the planted fault was not found: {name}")
    passed = failed = 0
    for page in pages():
        name = page.relative_to(ROOT)
        try:
            ran, left = check(page, page.read_text(), Place(binary))
        except Fault as why:
            print(f"docs: FAILED: {name}: {why}")
            failed += 1
            continue
        passed += 1
        print(f"docs: ok: {name}: {ran} blocks run, {left} not, each with its reason")
    print(f"test result: {'ok' if not failed else 'FAILED'}. {passed} passed; {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
