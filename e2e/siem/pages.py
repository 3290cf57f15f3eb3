"""pages.py   what can be said of docs/siem without running the products: each page is short and says whether it is
tested, each file is linked or shown as it is, JSON is JSON. Closes with a line `passed FAILED` on standard output."""
import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs/siem"
LONGEST = 60


def complaints(page, text, files):
    lines = text.splitlines()
    if len(lines) > LONGEST:
        yield f"has {len(lines)} lines, more than {LONGEST}"
    if page != "README.md" and not re.match(r"\*\*(Tested|Untested)\*\*", lines[2]):
        yield "does not begin by saying whether it is tested"
    if page != "README.md" and not all(f"**{word}" in text for word in ("Duplicates", "Alerts only", "Loss")):
        yield "does not say what removes duplicates, what an alert is or how loss shows"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not (DOCS / target).is_file():
            yield f"links {target}, which is not there"
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for name, content in files.items():
        shown = [block for block in blocks if block.splitlines()[:1] == content.splitlines()[:1]]
        # All JSON begins alike.
        if shown and content not in shown and not name.endswith(".json"):
            yield f"shows {name} other than it is"


def is_json(text):
    try:
        return json.loads(text) is not None
    except ValueError:
        return False


def main():
    files = {path.name: path.read_text() for path in sorted(DOCS.iterdir()) if path.suffix != ".md"}
    pages = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
    found = {page: list(complaints(page, text, files)) for page, text in pages.items()}
    for name, content in files.items():
        used = [page for page, text in pages.items() if f"]({name})" in text or content in text]
        found[name] = [] if used else ["is neither linked nor shown as it is by any page"]
        if name.endswith(".json") and not is_json(content):
            found[name].append("is not JSON")
    other = files["logstash.conf"].replace("event", "x")
    broken = f"# Page\n\nNo word of tests. [x](no-file)\n\n```\n{other}```\n" + "\n" * LONGEST
    seen = list(complaints("x.md", broken, files))
    found["a page with every fault"] = [] if len(seen) == 5 else ["has faults that go unseen"]
    for name, faults in found.items():
        print(f"siem: {'FAILED' if faults else 'ok'}: {name} {'; '.join(faults)}".rstrip(), file=sys.stderr)
    failed = sum(map(bool, found.values()))
    print(len(found) - failed, failed)


main()
