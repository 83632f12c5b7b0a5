"""Collect free English texts from Debian packages and clean them to plain ASCII.

Packages are downloaded with `apt-get download` and unpacked with `dpkg -x`;
nothing is installed. The result is three files in WORK:

  train.txt      one paragraph per line, documents separated by a blank line
  val.txt        documents held out of every source (never trained on)
  held_out.txt   public-domain documents held out (never trained on), shipped
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import unicodedata
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

# package -> licence of the texts used (see /usr/share/doc/PACKAGE/copyright)
PACKAGES: dict[str, str] = {
    "bible-kjv": "GPL-2+ (reader program only, used to unpack bible-kjv-text)",
    "bible-kjv-text": "text in the public domain",
    "sword-text-web": "public domain (World English Bible)",
    "display-dhammapada": "public domain (English translation)",
    "dict-devil": "public domain",
    "dict-jargon": "public domain",
    "dict-gcide": "GPL-2+",
    "dict-foldoc": "GFDL-1.1+, no invariant sections",
    "anarchism": "GPL-2",
    "debian-handbook": "GPL-2+ or CC-BY-SA-3.0",
    "debian-reference-en": "GPL-2+",
    "developers-reference": "GPL-2+",
    "debian-faq": "permissive copyleft (verbatim and modified copies allowed)",
    "harden-doc": "GPL-2",
    "installation-guide-amd64": "GPL-2",
    "gnome-user-docs": "CC-BY-SA-3.0",
    "gimp-help-en": "GFDL-1.2+ (GIMP Documentation Team)",
    "git-doc": "GPL-2",
    "perl-doc": "GPL-1+ or Artistic",
    "fortunes": "BSD (as the package states for the collection)",
}

# Books of the Bible held out of both translations.
HELD_OUT_BOOKS = ("Ruth", "Esther", "Ecclesiastes", "Acts")
BOOKS = {"Est": "Esther", "Esth": "Esther", "EsthGr": "Esther", "AddEsth": "Esther", "Eccl": "Ecclesiastes"}
ASCII_MAP = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--",
    "\u2026": "...", "\u00a0": " ", "\u2022": "-", "\u2212": "-", "\u00d7": "x", "\u2192": "->",
    "\u00b4": "'", "\u00e6": "ae", "\u0153": "oe", "\u00c6": "Ae",
})


def to_ascii(text: str) -> str:
    """Transliterate to ASCII; what has no plain form is dropped."""
    text = unicodedata.normalize("NFKD", text.translate(ASCII_MAP))
    return text.encode("ascii", "ignore").decode("ascii")


def paragraphs(text: str) -> list[str]:
    """Split at blank lines and join the lines of each paragraph."""
    parts = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    return [p for p in parts if p]


def prose(parts: list[str], shortest: int = 40) -> list[str]:
    """Keep paragraphs that read like sentences rather than tables or code."""
    kept = []
    for part in parts:
        if len(part) < shortest:
            continue
        letters = sum(c.isalpha() or c == " " for c in part)
        if letters >= 0.86 * len(part) and "|" not in part and "=>" not in part:
            kept.append(part)
    return kept


class Paragraphs(HTMLParser):
    """The paragraph, list and heading text of an HTML or XML page."""

    BLOCKS = {"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "td", "div", "title", "item", "para",
              "blockquote", "section", "page", "desc", "th", "tr", "body"}
    SKIP = {"script", "style", "pre", "code_block", "screen", "head", "nav", "info", "table"}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.current: list[str] = []
        self.skipping = 0

    def flush(self) -> None:
        text = re.sub(r"\s+", " ", "".join(self.current)).strip()
        self.current = []
        if text:
            self.out.append(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag in self.SKIP:
            self.skipping += 1
        elif tag in self.BLOCKS:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIP:
            self.skipping = max(0, self.skipping - 1)
        elif tag in self.BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.current.append(data)


def markup(path: Path) -> list[str]:
    parser = Paragraphs()
    parser.feed(path.read_text("utf-8", "ignore"))
    parser.close()
    parser.flush()
    return prose(parser.out)


def dictionary(path: Path) -> str:
    return gzip.open(path, "rb").read().decode("utf-8", "ignore")


def grouped(docs: list[list[str]], size: int) -> Iterator[list[str]]:
    """Join short documents until each group has about `size` characters."""
    group: list[str] = []
    total = 0
    for doc in docs:
        group += doc
        total += sum(map(len, doc))
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def kjv(root: Path) -> Iterator[tuple[str, list[str]]]:
    reader = root / "bible-kjv/usr/bin/bible"
    library = root / "bible-kjv-text/usr/lib"
    run = subprocess.run([reader, "-p", library, "-f", "gen1:1-rev22:21"],
                         capture_output=True, text=True, check=True)
    chapters: dict[tuple[str, str], list[str]] = {}
    for line in run.stdout.splitlines():
        match = re.match(r"(\d?[A-Za-z]+)(\d+):\d+ (.*)", line)
        if match:
            chapters.setdefault((match[1], match[2]), []).append(match[3].strip())
    for (book, _), verses in chapters.items():
        yield BOOKS.get(book, book), [" ".join(verses[i:i + 4]) for i in range(0, len(verses), 4)]


def web(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Blocks of the SWORD zText module: one zlib block per book."""
    base = root / "sword-text-web/usr/share/sword/modules/texts/ztext/engWEB2015eb"
    for testament in ("ot", "nt"):
        index = (base / f"{testament}.bzs").read_bytes()
        blob = (base / f"{testament}.bzz").read_bytes()
        for at in range(0, len(index) - 11, 12):
            offset, size = (int.from_bytes(index[at + i:at + i + 4], "little") for i in (0, 4))
            if not size:
                continue
            text = zlib.decompress(blob[offset:offset + size]).decode("utf-8", "ignore")
            text = re.sub(r"<note.*?</note>", "", text, flags=re.S)
            text = re.sub(r"<title.*?</title>", "", text, flags=re.S)
            name = re.search(r'osisID="([0-9A-Za-z]+)', text)
            for chapter in re.split(r"<chapter ", text)[1:]:
                pieces = re.split(r"</?p>|</?lg|<div [^>]*x-p[^>]*>", chapter[chapter.find(">") + 1:])
                parts = [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", p)).strip() for p in pieces]
                parts = [re.sub(r" ([,.;:?!])", r"\1", p) for p in parts if len(p) > 1]
                if parts:
                    yield (name[1] if name else "?"), parts


def documents(root: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(source, title, paragraphs) of every document."""
    for book, parts in kjv(root):
        yield "bible-kjv-text", book, parts
    for book, parts in web(root):
        yield "sword-text-web", BOOKS.get(book, book), parts
    text = (root / "display-dhammapada/usr/share/display-dhammapada/dhammapada-english-transl.txt")
    verses = [re.sub(r" \d+$", "", p) for p in paragraphs(text.read_text("utf-8", "ignore"))]
    for i, group in enumerate(grouped([[v] for v in prose(verses)], 4000)):
        yield "display-dhammapada", str(i), group
    devil = dictionary(root / "dict-devil/usr/share/dictd/devil.dict.dz")
    for i, group in enumerate(grouped([[p] for p in paragraphs(devil)[12:]], 4000)):
        yield "dict-devil", str(i), group
    jargon = dictionary(root / "dict-jargon/usr/share/dictd/jargon.dict.dz").replace("{", "").replace("}", "")
    for i, group in enumerate(grouped([[p] for p in prose(paragraphs(jargon)[12:], 60)], 4000)):
        yield "dict-jargon", str(i), group
    foldoc = dictionary(root / "dict-foldoc/usr/share/dictd/foldoc.dict.dz")
    foldoc = re.sub(r"[{}]|<[^>]*>", "", foldoc)
    for i, group in enumerate(grouped([[p] for p in prose(paragraphs(foldoc)[12:], 60)], 4000)):
        yield "dict-foldoc", str(i), group
    gcide = dictionary(root / "dict-gcide/usr/share/dictd/gcide.dict.dz")
    gcide = re.sub(r"\[[^\]]*\]|[{}]|\\[^\\\n]*\\|--[A-Z][^\n]*", "", gcide)
    entries = [[p] for p in prose(paragraphs(gcide)[20:], 90)]
    for i, group in enumerate(grouped(entries, 4000)):
        if i % 3 == 0:  # a third is enough: definitions are not running text
            yield "dict-gcide", str(i), group
    trees = {
        "anarchism": "usr/share/doc/anarchism/html/*.html",
        "debian-handbook": "usr/share/doc/debian-handbook/html/en-US/*.html",
        "debian-reference-en": "usr/share/debian-reference/*.en.html",
        "developers-reference": "usr/share/developers-reference/developers-reference.html",
        "debian-faq": "usr/share/doc/debian/FAQ/*.en.html",
        "harden-doc": "usr/share/doc/harden-doc/html/en-US/*.html",
        "installation-guide-amd64": "usr/share/doc/installation-guide-amd64/en/*.html",
        "gnome-user-docs": "usr/share/help/C/**/*.page",
        "gimp-help-en": "usr/share/gimp/2.0/help/en/*.html",
        "git-doc": "usr/share/doc/git-doc/**/*.html",
    }
    for source, pattern in trees.items():
        for path in sorted((root / source).glob(pattern)):
            if "changelog" in path.name or path.is_symlink():
                continue
            for i, group in enumerate(grouped([[p] for p in markup(path)], 12000)):
                yield source, f"{path.name}:{i}", group
    for path in sorted((root / "perl-doc").glob("usr/share/perl/*/pod/*.pod")):
        if path.name.startswith(("perluniprops", "perltoc", "perlapi")):
            continue
        pod = re.sub(r"[A-Z]<+\s?([^<>]*?)\s?>+", r"\1", path.read_text("utf-8", "ignore"))
        parts = [p for p in re.split(r"\n\s*\n", pod) if not p.startswith(("=", " ", "\t"))]
        for i, group in enumerate(grouped([[p] for p in prose(paragraphs("\n\n".join(parts)))], 12000)):
            yield "perl-doc", f"{path.name}:{i}", group
    for path in sorted((root / "fortunes").glob("usr/share/games/fortunes/*")):
        if path.suffix or not path.is_file() or path.is_symlink():
            continue
        quotes = path.read_text("utf-8", "ignore").split("\n%\n")
        docs = [[p] for p in prose([re.sub(r"\s+", " ", q).strip() for q in quotes])]
        for i, group in enumerate(grouped(docs, 4000)):
            yield "fortunes", f"{path.name}:{i}", group


def is_held_out(source: str, title: str) -> str:
    """Where a document goes: "train", "val" or "held_out"."""
    if source in ("bible-kjv-text", "sword-text-web"):
        if title not in HELD_OUT_BOOKS:
            return "train"
        return "held_out" if source == "bible-kjv-text" else "val"
    bucket = int(hashlib.sha256(f"{source}/{title}".encode()).hexdigest(), 16) % 100
    if source in ("dict-devil", "dict-jargon", "display-dhammapada"):
        return "held_out" if bucket < 5 and title != "0" else "train"
    return "val" if bucket < 2 else "train"


def download(packages: Path) -> dict[str, str]:
    """Download and unpack what is missing; return package -> version."""
    packages.mkdir(parents=True, exist_ok=True)
    versions = {}
    for name in PACKAGES:
        if not list(packages.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", name], cwd=packages, check=True)
        deb = next(packages.glob(f"{name}_*.deb"))
        versions[name] = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True,
                                        capture_output=True, text=True).stdout.strip()
        if not (packages / name).exists():
            (packages / name).mkdir()
            subprocess.run(["dpkg", "-x", deb, packages / name], check=True)
    return versions


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--work", type=Path, default=Path("work"))
    work: Path = args.parse_args().work
    versions = download(work / "packages")
    files = {name: (work / f"{name}.txt").open("w", encoding="ascii") for name in ("train", "val", "held_out")}
    seen: set[str] = set()
    sizes: dict[str, dict[str, int]] = {}
    for source, title, parts in documents(work / "packages"):
        lines = []
        for part in parts:
            line = re.sub(r"\s+", " ", to_ascii(part)).strip()
            if len(line) < 3 or line in seen:
                continue
            seen.add(line)
            lines.append(line)
        if not lines:
            continue
        where = is_held_out(source, title)
        text = "\n".join(lines) + "\n\n"
        files[where].write(text)
        count = sizes.setdefault(source, {"train": 0, "val": 0, "held_out": 0})
        count[where] += len(text)
    for file in files.values():
        file.close()
    table = {s: {"version": versions[s], "licence": PACKAGES[s], **sizes[s]} for s in sizes}
    (work / "sources.json").write_text(json.dumps(table, indent=1) + "\n")
    for source, row in table.items():
        print(f"{source:26} {row['version']:24} {row['train']:>9} {row['val']:>8} {row['held_out']:>8}")


if __name__ == "__main__":
    main()
