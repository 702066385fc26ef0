"""Files that `intlm prepare` reads: a path is a name, compressed text is text, and nothing is dropped silently."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import zstandard

from intlm.cli import main
from intlm.data.shards import Corpus

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


class Prepared:
    """The command `intlm prepare`, and the corpus that it made of a path."""

    def __init__(self, capsys: pytest.CaptureFixture[str], place: Path, to: Path, *flags: object) -> None:
        capsys.readouterr()
        given = ("--data.train", place, "--data.prepared", to, "--data.valid_bytes", 0, *flags)
        self.code = main(["prepare", str(tiny.CONFIG), *map(str, given)])
        self.out, self.err = capsys.readouterr()
        self.corpus = Corpus.open(to) if self.code == 0 else None

    @property
    def texts(self) -> list[str]:
        assert self.corpus, self.err
        split = self.corpus.split("train")
        read = self.corpus.tokenizer.decode
        return [read(split.read(start, end - start)).decode() for start, end in split.document_spans()]

    @property
    def refusal(self) -> str:
        """Returns the one line of a refusal."""
        assert self.code == 2 and self.out == "" and self.err.count("\n") == 1, self.err
        return self.err


@pytest.fixture
def prepared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Prepared]:
    number = iter(range(1000))
    return lambda place, *flags: Prepared(capsys, place, tmp_path / "corpora" / str(next(number)), *flags)


@pytest.mark.parametrize("name", ["data[1]", "data*", "da?a1", "a::data1", "data1#x", "{data1}", "%64ata1"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".txt"])
def test_a_path_is_a_name(tmp_path: Path, prepared: Callable[..., Prepared], name: str, suffix: str) -> None:
    """A path is a name, not a pattern: of a file or its folder, beside files that it would match as a pattern."""

    def write(path: Path, text: str) -> None:
        if suffix == ".parquet":
            pq.write_table(pa.table({"text": [text]}), path)
        else:
            content = text.encode() if suffix == ".txt" else rows(text)
            path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)

    for folder, text in ((name, "right"), ("data1", "wrong")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / f"{folder}{suffix}", text)
        write(tmp_path / f"{folder}{suffix}", text)
    assert prepared(tmp_path / f"{name}{suffix}").texts == ["right"]
    assert prepared(tmp_path / name).texts == ["right"]


def test_all_rows_of_a_folder_are_read(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    """All rows of a folder are read, of every kind, whatever their names; files left out are listed with the reason."""
    place = tmp_path / "set"
    (place / "more").mkdir(parents=True)
    (place / "a.jsonl").write_bytes(rows("a"))
    (place / "b.NDJSON").write_bytes(b"\xef\xbb\xbf" + rows("b"))
    (place / "c.json").write_bytes(rows("c"))
    (place / "d.jsonl.xz").write_bytes(lzma.compress(rows("d")))
    pq.write_table(pa.table({"text": ["e"]}), place / "e.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), place / "f.parquet")
    (place / "more" / "train-extra.jsonl").write_bytes(rows("extra"))
    (place / "more" / "test.jsonl").write_bytes(rows("test"))
    (place / "README.md").write_text("# A data set")
    (place / "infos.json").write_text('{"default": {"splits": 1}}')
    (place / ".hidden.jsonl").write_bytes(rows("hidden"))
    (place / "nowhere.jsonl").symlink_to("absent")
    os.mkfifo(place / "fifo.jsonl")
    made = prepared(place)
    assert made.texts == ["a", "b", "c", "d", "e", "extra"]
    read = "a.jsonl, b.NDJSON, c.json, d.jsonl.xz, e.parquet, f.parquet, more/train-extra.jsonl"
    for line in (
        f"train: read the rows of {read}",
        "train: left out (not rows of the data set): README.md, infos.json",
        "train: left out (split 'test'): more/test.jsonl",
        "train: left out (hidden): .hidden.jsonl",
        "train: left out (a broken link): nowhere.jsonl",
        "train: left out (a FIFO): fifo.jsonl",
    ):
        assert f"{line}\n" in made.out
    assert prepared(place, "--data.split", "test").texts == ["test"]
    assert "no split 'x', only 'train', 'test'" in prepared(place, "--data.split", "x").refusal


def test_links_are_followed_once(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    """Links to files and folders are followed once; a folder that holds itself is read once, and no corpus is written
    into a linked one."""
    place, other = tmp_path / "place", tmp_path / "other"
    (place / "z").mkdir(parents=True)
    other.mkdir()
    (place / "z" / "1.txt").write_text("one")
    (other / "2.txt").write_text("two")
    (place / "b").symlink_to(other)
    (place / "loop").symlink_to(place)
    (other / "again").symlink_to(place / "z")
    (place / "self").symlink_to("self")
    made = prepared(place)
    assert made.texts == ["two", "one"]
    assert "train: read b/2.txt, b/again/1.txt\n" in made.out
    assert "train: left out (a link to a folder that is read already): loop, z\n" in made.out
    assert "train: left out (a broken link): self\n" in made.out
    assert "lies inside the text" in prepared(place, "--data.prepared", other / "corpus").refusal


def test_the_configs_of_a_readme(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    """The patterns in `configs` are patterns, as on the hub."""
    place = tmp_path / "set"
    for name in ("en/a", "en/b", "de/a", "de/test"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.jsonl").write_bytes(rows(name))
    (place / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  default: true\n  data_files: en/*.jsonl\n- config_name: de\n"
        "  data_files:\n  - split: train\n    path: [de/a.jsonl]\n  - split: held\n    path: de/t*\n"
        "- config_name: all\n---\n"
    )
    made = prepared(place)
    assert made.texts == ["en/a", "en/b"]
    assert "train: left out (not in the configs of README.md): de/a.jsonl, de/test.jsonl\n" in made.out
    assert prepared(place, "--data.subset", "de", "--data.split", "held").texts == ["de/test"]
    assert prepared(place, "--data.subset", "all").texts == ["de/a", "en/a", "en/b"]
    assert "no subset 'fr', only 'en', 'de', 'all'" in prepared(place, "--data.subset", "fr").refusal
    for damaged in ("configs: [", "configs: [a, 1]", "configs: 7", "configs: [{config_name: a, data_files: 5}]", "- a"):
        (place / "README.md").write_text(f"---\n{damaged}\n---\n")
        assert "README.md: cannot be read: " in prepared(place).refusal
    (place / "README.md").write_text("---\nconfigs: [{config_name: a, data_files: absent*}]\n---\n")
    assert "no split 'train', as README.md names no file that is there" in prepared(place).refusal


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_is_text(tmp_path: Path, prepared: Callable[..., Prepared], suffix: str) -> None:
    """Compressed text is read as text: under any name, in any number of streams; cut off or damaged, it is refused."""
    whole = COMPRESS[suffix](b"some text") + COMPRESS[suffix](b", and more")
    for name in (f"a.txt{suffix}", f"A.TXT{suffix.upper()}", "a.txt"):
        (tmp_path / name).write_bytes(whole)
        assert prepared(tmp_path / name).texts == ["some text, and more"]
    place = tmp_path / f"rows.JSONL{suffix}"
    place.write_bytes(COMPRESS[suffix](rows("a", "b")))
    assert prepared(place).texts == ["a", "b"]
    random = bytes(np.random.default_rng(0).integers(0, 256, 50_000, np.uint8))
    long = COMPRESS[suffix](random)
    damaged = bytearray(long)
    damaged[len(long) // 2] ^= 255
    for content in (whole[:-3], whole[:12], long[: len(long) // 2], whole + b"rubbish", bytes(damaged)):
        if suffix == ".zst" and content == bytes(damaged):
            continue  # what zstandard.compress writes has no checksum
        (tmp_path / f"bad{suffix}").write_bytes(content)
        assert f"bad{suffix}: cannot be read: " in prepared(tmp_path / f"bad{suffix}").refusal
    (tmp_path / f"plain.txt{suffix}").write_bytes(b"plain")
    assert "although its name says so" in prepared(tmp_path / f"plain.txt{suffix}").refusal
    (tmp_path / f"twice.txt{suffix}").write_bytes(COMPRESS[suffix](whole))
    assert "holds data compressed twice" in prepared(tmp_path / f"twice.txt{suffix}").refusal


def test_containers_are_refused(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    table = pa.table({"text": ["some text"]})
    pq.write_table(table, tmp_path / "parquet.txt")
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write(table)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write(table)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "some text")
    (tmp_path / "a.txt").write_text("some text")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.txt", "a.txt")
    (tmp_path / "utf16.txt").write_bytes("some text".encode("utf-16"))
    (tmp_path / "utf32.txt").write_bytes("some text".encode("utf-32"))
    (tmp_path / "within.txt.xz").write_bytes(lzma.compress((tmp_path / "parquet.txt").read_bytes()))
    expected = {
        "parquet.txt": "Parquet", "file.arrow": "Arrow", "stream.arrow": "Arrow", "a.zip": "a zip archive",
        "a.tar.gz": "a tar archive", "utf16.txt": "UTF-16 text", "utf32.txt": "UTF-32 text", "within.txt.xz": "Parquet",
    }  # fmt: skip
    for name, what in expected.items():
        assert f"{name}: holds {what}: expected text (UTF-8)" in prepared(tmp_path / name).refusal
        folder = tmp_path / "folder" / name
        folder.mkdir(parents=True)
        (folder / name).write_bytes((tmp_path / name).read_bytes())
        (folder / "a.txt").write_text("some text")
        assert f"{name}: holds {what}: expected text (UTF-8)" in prepared(folder).refusal


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"a": 1,\n "text": "x"}', "a.json, line 1: not a JSON object: Expecting property name"),
        ("a.json", b'[{"text": "x"}]', "a.json, line 1: not a JSON object: it is a list: expected one"),
        ("a.jsonl", b'{"text": "x"}\n"x"\n', "a.jsonl, line 2: not a JSON object: it is a str"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl, row 1: data.columns: column 'text' holds half a surrogate"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "a.jsonl, line 1: not a JSON object: maximum recursion depth"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl, line 1: not a JSON object: Exceeds the limit"),
        ("a.jsonl", b"\xff\xfe" + '{"text": "x"}\n'.encode("utf-16-le"), "a.jsonl: holds UTF-16 text"),
        ("a.parquet", b"PAR1 and nothing more", "a.parquet: cannot be read: "),
        ("a.parquet", b"", "a.parquet: cannot be read: "),
    ],
)
def test_rows_that_cannot_be_read(
    tmp_path: Path, prepared: Callable[..., Prepared], name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in prepared(tmp_path / name).refusal


def test_damaged_parquet(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    """Damaged Parquet: cut anywhere it is refused, in one line; with any byte changed it is refused or read to its
    end."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(50)]}), path, row_group_size=20)
    whole = path.read_bytes()
    for end in range(4, len(whole), len(whole) // 20):
        path.write_bytes(whole[:end])
        assert "a.parquet: " in prepared(path).refusal
    pq.write_table(pa.table({"text": ["some text"]}), path, write_page_checksum=True, compression="none")
    path.write_bytes(path.read_bytes().replace(b"some text", b"some test", 1))
    assert "a.parquet: cannot be read: " in prepared(path).refusal
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        made = prepared(path)
        assert made.code == 0 or made.refusal


def test_a_bomb_is_read_in_bounded_memory(
    tmp_path: Path, prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that expands to gigabytes is read in chunks; the size of a row is limited."""
    size = 1 << 28
    for suffix, compress in COMPRESS.items():
        (tmp_path / f"a.txt{suffix}").write_bytes(compress(bytes(size >> 4)) * 16)
    code = """
import sys
from pathlib import Path
from intlm.data import files
print(*(sum(map(len, files.chunks(Path(path)))) for path in sys.argv[1:]))
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    command = [sys.executable, "-c", code, *map(str, tmp_path.glob("a.txt.*"))]
    *read, _, most, _ = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert read == 4 * [str(size)] and int(most) < size >> 10  # KiB
    monkeypatch.setattr("intlm.data.rows.LONGEST", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows("a" * 900, "b" * 2000)))
    monkeypatch.setattr("intlm.data.files.CHUNK", 100)
    assert "a.jsonl.gz, line 2: longer than 1,000 bytes" in prepared(tmp_path / "a.jsonl.gz").refusal


def test_neither_file_nor_folder(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "recipe.py")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".only").write_text("hidden")
    for place, what in (
        ("/dev/null", "a device"),
        ("/dev/zero", "a device"),
        (tmp_path / "fifo", "a FIFO"),
        (tmp_path / "recipe.py", "a FIFO"),
        (tmp_path / "loop", "a broken link"),
        (tmp_path / "absent", "no such text file, directory or .py file"),
        (tmp_path / "folder", "nothing to read in it (.only: hidden)"),
    ):
        assert f"{place}: {what}" in prepared(place).refusal
    assert "/dev/zero: a device" in prepared(tiny.HOME / "text.txt", "--data.tokenizer_file", "/dev/zero").refusal


def test_a_separator_that_never_occurs(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    made = prepared(tmp_path / "a.txt", "--data.document_separator", r"\n\n")
    assert made.texts == ["one\n\ntwo"]
    assert r"data.document_separator = '\\n\\n': does not occur" in made.err and "$'" in made.err
    made = prepared(tmp_path / "a.txt", "--data.document_separator", "\n\n")
    assert made.texts == ["one", "two"] and made.err == ""


def test_a_recipe_that_says_nothing_of_its_failure(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    (tmp_path / "a.py").write_text("def documents():\n    assert False\n    yield b''\n")
    assert prepared(tmp_path / "a.py").refusal.endswith("the Python file failed: AssertionError\n")


def test_a_tokenizer_of_compressed_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some text"))
    (tmp_path / "a.jsonl").write_bytes(rows("some text"))
    made = []
    for name in ("a.txt", "a.txt.gz", "a.jsonl"):
        flags = ("--out", tmp_path / "made.json", "--data.train", tmp_path / name)
        assert main(["tokenizer", "train", str(tiny.CONFIG), *map(str, flags)]) == 0
        made.append((tmp_path / "made.json").read_bytes())
    assert made[0] == made[1] == made[2]
