#!/usr/bin/env python3
"""`make picture`: docs/demo.svg, a recording of `make demo` as an animated picture; Python's own library only.

    deploy/picture.py [FILE]            records the demo on a pseudo-terminal and writes the picture when what it says has changed
    deploy/picture.py --check [FILE]    records, compares, and says what differs; for the tests

Times, durations and ports differ from run to run and do not count as a change, so the picture in the repository is the one that
somebody looked at.
"""

import difflib
import fcntl
import html
import os
import pty
import re
import signal
import struct
import sys
import termios
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLUMNS, ROWS = 118, 30
# How long a line may keep the viewer waiting, how long the last screen stays, seconds.
LONGEST_PAUSE, STAYS = 1.2, 8.0
CELL, LINE, MARGIN = 7.8, 18, 14
# The colours that `make demo` uses, by their SGR code.
STYLES = {"1": "b", "2": "d", "31": "r", "32": "g", "33": "y", "36": "c"}
SGR = re.compile(r"\x1b\[([0-9;]*)m")
OTHER = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\][^\x07]*\x07|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]")


def record():
    """Lines of the demo, each with the time at which it was complete, from a pseudo-terminal of our size."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", LINES=str(ROWS), COLUMNS=str(COLUMNS))
        os.environ.pop("NO_COLOR", None)
        os.execv(os.path.join(TOP, "deploy/demo.sh"), ["deploy/demo.sh"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    begin, rest, lines = time.monotonic(), b"", []
    try:
        while True:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            *complete, rest = (rest + piece).split(b"\n")
            now = time.monotonic() - begin
            lines += [(now, cleaned(line)) for line in complete]
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    if status != 0:
        sys.exit("the demo failed:\n" + "\n".join(plain(line) for _, line in lines))
    return lines


def cleaned(line):
    """A line as text and colours, without the name of the machine that it was recorded on."""
    text = OTHER.sub("", line.decode("utf-8", "replace").rstrip("\r"))
    return re.sub(rf"\b{re.escape(os.uname().nodename)}\b", "w1.example", text)


def plain(line):
    return SGR.sub("", line)


def normal(line):
    """The line without what differs from run to run."""
    line = re.sub(r"\d\d:\d\d:\d\d(\.\d+)?", "CLOCK", plain(line).rstrip())
    line = re.sub(r"\d{4}-\d\d-\d\dTCLOCK(Z?)", "CLOCK", line)
    line = re.sub(r"<?\d+(\.\d+)? (ms|s)\b", "TIME", line)
    line = re.sub(r"\d+(\.\d+)? (bytes|KiB|MiB|GiB)\b", "SIZE", line)
    line = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", line)
    line = re.sub(r"nats-server v?[0-9.]+", "nats-server VERSION", line)
    return re.sub(r"\s+", " ", line).strip()


def stories(lines):
    """Events, notices and the rest: they come by ways of their own, so only the order within each is the same each time."""
    lines = [line for line in map(normal, lines) if line]
    kind = lambda line: next((kind for kind in ("event ", "windlass: ") if line.startswith(kind)), "")
    return [[line for line in lines if kind(line) == wanted] for wanted in ("event ", "windlass: ", "")]


def spans(line):
    """Pieces of a line with their styles."""
    pieces, style, at = [], [], 0
    for match in SGR.finditer(line):
        pieces.append((line[at : match.start()], list(style)))
        at = match.end()
        for code in match.group(1).split(";"):
            style = [] if code in ("", "0") else style + [STYLES[code]] if code in STYLES else style
    pieces.append((line[at:], style))
    return [(text, style) for text, style in pieces if text]


def wrapped(lines):
    """Rows as the terminal shows them, none longer than its width: (time, goes on the row before, pieces)."""
    for at, line in lines:
        pieces, room, goes_on = [], COLUMNS, False
        for text, style in spans(line.replace("\t", "    ")):
            while text:
                if room == 0:
                    yield at, goes_on, pieces
                    pieces, room, goes_on = [], COLUMNS, True
                pieces.append((text[:room], style))
                text, room = text[room:], room - len(text[:room])
        yield at, goes_on, pieces


def paced(rows):
    """Times for a viewer, who has to read it: a while before each heading and command, and no pause that is tiring."""
    shown, before, now = [], 0.0, 0.3
    for at, goes_on, pieces in rows:
        first, style = pieces[0] if pieces else ("", [])
        least = 0 if goes_on else 1.8 if "b" in style and first[0].isdigit() else 0.9 if first.startswith("$ ") else 0.12
        now += max(least, min(at - before, LONGEST_PAUSE))
        before = at
        shown.append((now, goes_on, pieces))
    return shown


def svg(lines):
    """The picture: each line appears at its time, and the screen moves up when it is full."""
    shown = paced(wrapped(lines))
    total = shown[-1][0] + STAYS
    share = lambda at: f"{100 * at / total:.2f}%"
    width, height = round(COLUMNS * CELL + 2 * MARGIN), ROWS * LINE + 2 * MARGIN + 24
    moves = [(at, n - ROWS + 1) for n, (at, _, _) in enumerate(shown) if n >= ROWS]
    frames = "".join(f"{share(at)}{{transform:translateY({-LINE * up}px)}}" for at, up in moves)
    rest = -LINE * max(len(shown) - ROWS, 0)
    rows, appear = [], []
    for n, (at, goes_on, pieces) in enumerate(shown):
        if not pieces:
            continue
        name = f"c{n}" if goes_on else f"l{n}"
        appear.append(f"@keyframes {name}{{0%{{opacity:0}}{share(at)},to{{opacity:1}}}}#{name}{{animation-name:{name}}}")
        text = "".join(tspan(text, style) for text, style in pieces)
        rows.append(f'<text id="{name}" y="{(n + 1) * LINE}">{text}</text>')
    return f"""<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-labelledby="title">
<title id="title">A terminal: make demo starts a nats-server and a worker, and runs tasks that succeed, fail, time out, run out of memory and are canceled</title>
<style>
svg{{--paper:#10151c;--edge:#2b3440;--ink:#d7dee7;--d:#8291a3;--b:#fff;--r:#ff7b72;--g:#56d364;--y:#e3b341;--c:#76d9e6}}
@media (prefers-color-scheme:light){{svg{{--paper:#fcfcfa;--edge:#d0d7de;--ink:#24292f;--d:#667380;--b:#000;--r:#c0262d;--g:#1a7f37;--y:#8a6100;--c:#0b6b7c}}}}
text{{font:13px/1 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--ink);white-space:pre}}
.b{{font-weight:bold;fill:var(--b)}}.d{{fill:var(--d)}}.r{{fill:var(--r)}}.g{{fill:var(--g)}}.y{{fill:var(--y)}}.c{{fill:var(--c)}}
.moving,.moving text{{animation:{total:.1f}s step-end infinite}}
@keyframes move{{0%{{transform:none}}{frames}}}
#screen{{animation-name:move;transform:translateY({rest}px)}}
{"".join(appear)}
@media (prefers-reduced-motion:reduce){{.moving,.moving text{{animation:none!important}}}}
</style>
<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="var(--paper)" stroke="var(--edge)"/>
<g fill="var(--edge)"><circle cx="20" cy="17" r="5"/><circle cx="38" cy="17" r="5"/><circle cx="56" cy="17" r="5"/></g>
<text x="{width / 2:.0f}" y="21" text-anchor="middle" class="d">make demo</text>
<svg x="{MARGIN}" y="{MARGIN + 20}" width="{width - 2 * MARGIN}" height="{ROWS * LINE + 6}" overflow="hidden"><g id="screen" class="moving">
{chr(10).join(rows)}
</g></svg>
</svg>
"""


def tspan(text, style):
    text = html.escape(text, quote=False)
    return f'<tspan class="{style[-1]}">{text}</tspan>' if style else text


def lines_of(picture):
    """What the picture in the repository says, line by line; lines that were wrapped are put together again."""
    whole = []
    for kind, text in re.findall(r'<text id="([lc])\d+"[^>]*>(.*?)</text>', picture):
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
        if kind == "c":
            whole[-1] += text
        else:
            whole.append(text)
    return whole


def main():
    arguments = [a for a in sys.argv[1:] if a != "--check"]
    path = arguments[0] if arguments else os.path.join(TOP, "docs/demo.svg")
    lines = record()
    try:
        with open(path, encoding="utf-8") as file:
            before = stories(lines_of(file.read()))
    except FileNotFoundError:
        before = [[], [], []]
    now = stories([line for _, line in lines])
    if before == now:
        print(f"{os.path.relpath(path)} shows what the demo prints")
        return
    if "--check" in sys.argv:
        for was, is_now in zip(before, now):
            print("\n".join(difflib.unified_diff(was, is_now, "the picture", "the demo", lineterm="", n=1)))
        sys.exit("the picture is not what the demo prints: make picture")
    picture = svg(lines)
    with open(path, "w", encoding="utf-8") as file:
        file.write(picture)
    print(f"wrote {os.path.relpath(path)}, {len(picture.encode())} bytes")


if __name__ == "__main__":
    main()
