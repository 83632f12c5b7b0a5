#!/usr/bin/env python3
"""Records a command in a terminal and draws what the screen shows at its end as an SVG picture.

    scripts/record_demo.py -o docs/demo.svg -- make demo

The command runs under a pseudo-terminal of fixed width, so it prints as it would for a person: colours, streaming,
progress lines redrawn in place. A small terminal keeps the screen: text, SGR colours, carriage return, backspace, tab,
cursor up/down/forward/back/column and erasing; every other control sequence is read and ignored. Standard library only.
"""

import argparse
import codecs
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

CELL_WIDTH, LINE_HEIGHT, FONT_SIZE, MARGIN, BAR_HEIGHT = 8.0, 18, 13.3, 16, 32
BACKGROUND, FOREGROUND, DIM, BAR = "#1b1f27", "#d7dce5", "#8b94a5", "#2a303c"
COLOURS = ["#5c6370", "#e67e80", "#9fca77", "#e5c07b", "#6fb3f2", "#c792ea", "#5fc9c9", "#d7dce5"]
CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]|\x1b[=>]")


@dataclass(frozen=True)
class Style:
    colour: str = FOREGROUND
    bold: bool = False
    dim: bool = False

    def with_sgr(self, codes: list[int]) -> "Style":
        style, i = self, 0
        while i < len(codes):
            code = codes[i]
            if code == 0:
                style = Style()
            elif code == 1:
                style = replace(style, bold=True)
            elif code == 2:
                style = replace(style, dim=True)
            elif code == 22:
                style = replace(style, bold=False, dim=False)
            elif 30 <= code <= 37 or 90 <= code <= 97:
                style = replace(style, colour=COLOURS[code % 10])
            elif code == 39:
                style = replace(style, colour=FOREGROUND)
            elif code in (38, 48):  # 5;n or 2;r;g;b: only true colour is drawn
                if codes[i + 1 : i + 2] == [2] and code == 38 and len(codes) >= i + 5:
                    style = replace(style, colour="#%02x%02x%02x" % tuple(codes[i + 2 : i + 5]))
                i += 4 if codes[i + 1 : i + 2] == [2] else 2
            i += 1
        return style


class Screen:
    """The lines of a terminal that never scrolls anything away."""

    def __init__(self, columns: int):
        self.columns, self.row, self.column, self.style = columns, 0, 0, Style()
        self.cells: list[dict[int, tuple[str, Style]]] = [{}]

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            control = CONTROL.match(text, position)
            if control:
                if control.group(2):
                    self.control(control.group(1), control.group(2))
                position = control.end()
            else:
                self.put(text[position])
                position += 1

    def put(self, char: str) -> None:
        if char == "\n":
            self.move(self.row + 1, self.column)
        elif char == "\r":
            self.column = 0
        elif char == "\b":
            self.column = max(0, self.column - 1)
        elif char == "\t":
            self.column = min(self.columns - 1, (self.column // 8 + 1) * 8)
        elif char >= " ":
            if self.column >= self.columns:
                self.move(self.row + 1, 0)
            self.cells[self.row][self.column] = (char, self.style)
            self.column += 1

    def move(self, row: int, column: int) -> None:
        self.row, self.column = max(0, row), max(0, column)
        while len(self.cells) <= self.row:
            self.cells.append({})

    def control(self, arguments: str, kind: str) -> None:
        numbers = [int(part) for part in arguments.lstrip("?").split(";") if part]
        count = numbers[0] if numbers else 1
        if kind == "m":
            self.style = self.style.with_sgr(numbers or [0])
        elif kind in "AB":
            self.move(self.row + (count if kind == "B" else -count), self.column)
        elif kind in "CD":
            self.column = max(0, self.column + (count if kind == "C" else -count))
        elif kind == "G":
            self.column = count - 1
        elif kind == "K":
            self.erase(numbers[0] if numbers else 0)
        elif kind == "J" and (not numbers or numbers[0] == 0):
            self.erase(0)
            del self.cells[self.row + 1 :]

    def erase(self, mode: int) -> None:
        keep = {0: lambda c: c < self.column, 1: lambda c: c > self.column}.get(mode, lambda c: False)
        self.cells[self.row] = {c: cell for c, cell in self.cells[self.row].items() if keep(c)}

    def lines(self) -> list[list[tuple[int, str, Style]]]:
        """Each line as runs (first column, text, style); blank lines at the end are left out."""
        result = []
        for cells in self.cells:
            runs: list[tuple[int, str, Style]] = []
            for column in sorted(cells):
                char, style = cells[column]
                if runs and runs[-1][2] == style and runs[-1][0] + len(runs[-1][1]) == column:
                    runs[-1] = (runs[-1][0], runs[-1][1] + char, style)
                elif char != " ":
                    runs.append((column, char, style))
            result.append([(c, text.rstrip(), style) for c, text, style in runs if text.strip()])
        while result and not result[-1]:
            result.pop()
        return result


def record(command: list[str], columns: int, rows: int) -> Screen:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES=str(rows))
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127)
    screen, decoder, pending = Screen(columns), codecs.getincrementaldecoder("utf-8")("replace"), ""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux reports the end of a pseudo-terminal so
            break
        if not data:
            break
        text = pending + decoder.decode(data)
        start = text.rfind("\x1b")  # a control sequence may be cut in two by the read
        cut = start if start >= 0 and not CONTROL.match(text, start) else len(text)
        pending = text[cut:]
        screen.feed(text[:cut])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        sys.exit(f"record_demo: {' '.join(command)} ended with status {status}; no picture made")
    return screen


def draw(screen: Screen, prompt: str) -> str:
    lines = [[(0, "$ ", Style(dim=True)), (2, prompt, Style(bold=True))], *screen.lines()]
    width = round(2 * MARGIN + screen.columns * CELL_WIDTH)
    height = BAR_HEIGHT + 2 * MARGIN + len(lines) * LINE_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" '
        f'font-size="{FONT_SIZE}">',
        f"<title>{escape(prompt)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
        f'<path d="M0 {BAR_HEIGHT}V8a8 8 0 0 1 8-8h{width - 16}a8 8 0 0 1 8 8v{BAR_HEIGHT - 8}z" fill="{BAR}"/>',
    ]
    for i, colour in enumerate((COLOURS[1], COLOURS[3], COLOURS[2])):
        parts.append(f'<circle cx="{20 + 18 * i}" cy="{BAR_HEIGHT // 2}" r="5.5" fill="{colour}"/>')
    for row, runs in enumerate(lines):
        y = BAR_HEIGHT + MARGIN + (row + 0.75) * LINE_HEIGHT
        for column, text, style in runs:
            fill = DIM if style.dim else style.colour
            weight = ' font-weight="bold"' if style.bold else ""
            x, length = MARGIN + column * CELL_WIDTH, len(text) * CELL_WIDTH
            parts.append(
                f'<text x="{x:g}" y="{y:g}" textLength="{length:g}" fill="{fill}"{weight} xml:space="preserve">'
                f"{escape(text)}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the SVG file to write")
    parser.add_argument("--columns", type=int, default=100, help="width of the terminal (default: 100)")
    parser.add_argument("--rows", type=int, default=40, help="height the command is told (default: 40)")
    parser.add_argument("command", nargs="+", help="the command and its arguments, after --")
    arguments = parser.parse_args()
    screen = record(arguments.command, arguments.columns, arguments.rows)
    arguments.output.write_text(draw(screen, " ".join(arguments.command)), encoding="utf-8")


if __name__ == "__main__":
    main()
