"""Pictures of what was measured: the panels of the dashboard, each by its own query to a real Prometheus, and pages of a terminal.
SVG by hand: there is no Grafana on our registries, and a picture of text is best as text."""
import json
import re
import time
from html import escape

COLUMN, ROW, GAP = 40, 34, 8
INK, FAINT, PAPER, FRAME = "#d8d9da", "#8e8e8e", "#111217", "#22252b"
STEPS = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c"}
# Red and green say what is good and bad, and are no names' own.
LINES = ("#f2cc0c", "#5794f2", "#ff780a", "#b877d9", "#5bc0be", "#c0a080", "#8ab8ff")
# ECMA-48's colours as terminals have them.
SGR = {"1": "font-weight:bold", "2": "fill:#8e8e8e", "31": "fill:#f2495c", "32": "fill:#73bf69", "33": "fill:#f2cc0c"}
RANGE = 180


def asked(expression):
    """What Grafana makes of a panel's query, with every node chosen."""
    return expression.replace("$node", ".*").replace("$__rate_interval", "10s")


def panels(dashboard, ask):
    """Every panel with what its queries answer; a query that Prometheus refuses is an error, one without data is told."""
    found, now = [], time.time()
    for panel in json.loads(dashboard.read_text())["panels"]:
        series = []
        for target in panel["targets"]:
            query = asked(target["expr"])
            if panel["type"] == "stat":
                answer = ask("query", query=query)["result"]
            else:
                answer = ask("query_range", query=query, start=now - RANGE, end=now, step=1)["result"]
            for one in answer:
                points = one.get("values") or [one["value"]]
                name = target.get("legendFormat", "")
                for label, value in one["metric"].items():
                    name = name.replace("{{" + label + "}}", value)
                series.append((name, [(float(at), float(value)) for at, value in points if value not in ("NaN", "+Inf", "-Inf")]))
        print(f"drill: ok: panel '{panel['title']}': {sum(len(points) for _, points in series)} points", flush=True)
        found.append((panel, series))
    return found


def told(value, unit):
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    if unit == "s":
        return f"{value / 86400:.0f} d" if value > 86400 else f"{value:.2g} s"
    if unit == "bytes":
        return f"{value / 1024:.0f} KiB"
    return f"{value:.3g}" if value % 1 and value < 100 else f"{value:,.0f}"


def text(x, y, words, size=12, style="", anchor="start"):
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" style="{style}">{escape(words)}</text>'


def number(panel, series, middle, unit):
    """A panel that is one number, in the colour of its threshold, with whose it is."""
    if not series or not series[0][1]:
        return [text(*middle, "no data", 14, f"fill:{FAINT}", "middle")]
    name, value = series[0][0], series[0][1][-1][1]
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    color = next((STEPS[step["color"]] for step in reversed(steps) if step["value"] is None or value >= step["value"]), INK)
    (x, y), whose = middle, name if panel.get("options", {}).get("textMode") == "value_and_name" else ""
    return [text(x, y, told(value, unit), 26, f"fill:{color}", "middle"), text(x, y + 22, whose, 12, "", "middle")]


def draw(panel, series, at, size, colors):
    """A panel; `colors` has that of every name so far, which is the same wherever the name is."""
    (x, y), (width, height) = at, size
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    out = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="#181b1f" stroke="{FRAME}" rx="3"/>', text(x + 8, y + 18, panel["title"], 12 if width > 200 else 11)]
    if panel["type"] == "stat":
        return out + number(panel, series, (x + width / 2, y + height / 2 + 14), unit)
    points = [point for _, line in series for point in line]
    if not points:
        return [*out, text(x + width / 2, y + height / 2, "no data", 14, f"fill:{FAINT}", "middle")]
    top, begin, end = max(value for _, value in points) or 1, min(at for at, _ in points), max(at for at, _ in points)
    left, right, upper, lower = x + 60, x + width - 10, y + 30, y + height - 46
    out.append(text(left, lower + 15, time.strftime("%H:%M:%S", time.gmtime(begin)), 11, f"fill:{FAINT}"))
    out.append(text(right, lower + 15, time.strftime("%H:%M:%S UTC", time.gmtime(end)), 11, f"fill:{FAINT}", "end"))
    for share in (0, 0.5, 1):
        level = lower - share * (lower - upper)
        out.append(f'<line x1="{left}" x2="{right}" y1="{level:.0f}" y2="{level:.0f}" stroke="{FRAME}"/>')
        out.append(text(left - 6, level + 4, told(share * top, unit), 11, f"fill:{FAINT}", "end"))
    legend = left
    for name, line in series:
        color = colors.setdefault(name, LINES[len(colors) % len(LINES)])
        place = " ".join(f"{left + (t - begin) / ((end - begin) or 1) * (right - left):.1f},{lower - value / top * (lower - upper):.1f}" for t, value in line)
        out.append(f'<polyline points="{place}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        out.append(text(legend, y + height - 12, name or panel["title"], 11, f"fill:{color}"))
        legend += 14 + 7 * len(name or panel["title"])
    return out


def svg(width, height, lines, font):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="{font}" fill="{INK}">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="{PAPER}"/>', *lines, "</svg>\n"])


def board(found):
    # What is lost is red wherever it is.
    lines, bottom, colors = [], 0, {"lost": STEPS["red"], "wrong": STEPS["red"], "shipped": STEPS["green"], "right": STEPS["green"]}
    for panel, series in found:
        grid = panel["gridPos"]
        at = grid["x"] * COLUMN + GAP, grid["y"] * ROW + GAP
        size = grid["w"] * COLUMN - GAP, grid["h"] * ROW - GAP
        bottom = max(bottom, at[1] + size[1])
        lines += draw(panel, series, at, size, colors)
    return svg(24 * COLUMN + GAP, bottom + GAP, lines, "sans-serif")


def terminal(page, widest=190):
    """A page of a terminal, with its colours."""
    rows = []
    for number, row in enumerate(page.replace("\r", "").rstrip("\n").split("\n")):
        spans, style, length = [], "", 0
        for part in re.split(r"(\x1b\[[0-9;]*m)", row):
            if part.startswith("\x1b["):
                style = ";".join(SGR[code] for code in part[2:-1].split(";") if code in SGR)
                continue
            part = part[: widest - length]
            length += len(part)
            if part:
                spans.append(f'<tspan style="{style}">{escape(part)}</tspan>')
        rows.append(f'<text x="10" y="{22 + 17 * number}" font-size="13" xml:space="preserve">{"".join(spans)}</text>')
    width = 20 + 8 * min(widest, max(len(re.sub(r"\x1b\[[0-9;]*m", "", row)) for row in page.split("\n")))
    return svg(width, 30 + 17 * len(rows), rows, "monospace")


def write(directory, found, pages):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "dashboard.svg").write_text(board(found))
    for name, page in pages.items():
        (directory / f"{name}.svg").write_text(terminal(page))
