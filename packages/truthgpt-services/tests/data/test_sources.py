"""The kinds of data sets: which texts each gives, and what it says of what it cannot read."""

from __future__ import annotations

import csv
import json
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_services.data import DataError, TextSource
from truthgpt_services.data.sources.file_sources import CsvFiles, JsonLines, TextFiles

# Those that are text files: what they begin with, and how each text is written.
FORMS = {"text": ("", "{}\n\n"), "jsonl": ("", '{{"text": "{}"}}\n'), "csv": ("text\n", "{}\n")}
SUFFIXES = {"text": ".txt", "jsonl": ".jsonl", "csv": ".csv"}


def written(name: str, *texts: str) -> str:
    """What is in a file of these texts."""
    header, form = FORMS[name]
    return header + "".join(form.format(text) for text in texts)


@pytest.fixture
def make(bare_plugins):
    """Make a source as a configuration does."""
    factory = bare_plugins.factories["dataset_factory"]

    def make(name: str, dataset: object, **parameters: object) -> TextSource:
        return factory.create_from_config({"name": name, "parameters": parameters}, str(dataset))

    return make


@pytest.fixture
def read(make):
    """Read all the texts of a data set."""
    return lambda *args, **parameters: list(make(*args, **parameters).texts())


@pytest.fixture
def write(tmp_path):
    """Write a file of the data set; return its path."""

    def write(content: str | bytes, name: str = "data") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_every_kind_that_needs_no_library_is_a_source_of_texts(make):
    """Whoever reads one can read them all."""
    for name in (*FORMS, "python_docs"):
        assert isinstance(make(name, "topics"), TextSource)


@pytest.mark.parametrize("name", FORMS)
def test_a_file_may_have_any_name(read, write, name):
    """What a file is called says nothing of how it is read: the source does."""
    assert read(name, write(written(name, "one", "two"), "corpus.of.mine")) == ["one", "two"]


@pytest.mark.parametrize("name", FORMS)
def test_texts_can_be_read_again(make, write, name):
    """Every epoch has the same texts in the same order."""
    source = make(name, write(written(name, "one", "two")))
    assert list(source.texts()) == list(source.texts()) == ["one", "two"]


@pytest.mark.parametrize("name", FORMS)
def test_the_files_of_a_directory_are_read_in_the_order_of_their_paths(read, write, name):
    """Shards are put together in the same order on every machine, and other files left out."""
    for place in ("b/1", "a/2", "c", "a/1"):
        write(written(name, place), f"all/{place}{SUFFIXES[name]}")
    directory = write("a note", "all/README.md").parent
    assert read(name, directory) == ["a/1", "a/2", "b/1", "c"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_a_byte_order_mark_make_no_difference(read, write, name, end):
    """A file from Windows gives the texts that were written into it."""
    content = written(name, "one", "two").replace("\n", end).encode("utf-8-sig")
    assert read(name, write(content)) == ["one", "two"]


@pytest.mark.parametrize("name", FORMS)
def test_a_data_set_larger_than_memory_can_be_read(make, tmp_path, name):
    """Memory depends on the longest text, and not on how many there are."""
    path = tmp_path / "large"
    header, form = FORMS[name]
    with path.open("w") as file:
        file.write(header)
        file.writelines(form.format("x" * 1000) for _ in range(8000))
    tracemalloc.start()
    try:
        count = sum(1 for _ in make(name, path).texts())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 8000
    assert peak < path.stat().st_size / 10


@pytest.mark.parametrize("name", FORMS)
def test_what_comes_before_the_damage_is_read(make, write, name):
    """The error comes with the text that is damaged, and not before."""
    path = write(written(name, "one", "two").encode().replace(b"two", b"t\xffo"))
    texts = make(name, path).texts()
    assert next(texts) == "one"
    with pytest.raises(DataError, match="is not UTF-8"):
        next(texts)


@pytest.mark.parametrize("name", FORMS)
def test_a_byte_that_is_not_utf8_is_named_by_its_offset(read, write, name):
    """Whoever repairs the file finds the byte, after a byte order mark too."""
    content = b"\xef\xbb\xbf" + written(name, "one", "two").encode().replace(
        b"two", b"\xc3\xa4\xe4"
    )
    path = write(content)
    offset = content.index(b"\xe4")
    line = content[:offset].count(b"\n") + 1
    with pytest.raises(DataError) as caught:
        read(name, path)
    said = f"{path} is not UTF-8: byte 0xe4 at offset {offset}, in line {line}"
    assert str(caught.value).startswith(said)


def test_a_byte_order_mark_in_the_middle_is_a_character(read, write):
    """Only the first one of a file says how it is written."""
    assert read("text", write("\ufeffa\n\n\ufeffb")) == ["a", "\ufeffb"]


@pytest.mark.parametrize(("mark", "offset"), [(b"", 3), (b"\xef\xbb\xbf", 6)])
def test_a_character_that_is_cut_off_at_the_end_is_not_utf8(read, write, mark, offset):
    """A download that broke off is found out."""
    with pytest.raises(DataError, match=f"byte 0xe2 at offset {offset}, in line 1"):
        read("text", write(mark + b"abc\xe2\x82"))


@pytest.mark.parametrize("name", FORMS)
def test_a_mistyped_path_is_suggested(read, write, name):
    """The error names the file that was meant."""
    path = write("", "corpus.jsonl")
    with pytest.raises(DataError, match=r'There is no data set at .*"corpus\.jsonl"\?'):
        read(name, path.with_name("corpsu.jsonl"))


@pytest.mark.parametrize("name", FORMS)
def test_a_directory_without_such_files_says_which_it_needs(read, tmp_path, name):
    """A directory of something else is not an empty data set."""
    with pytest.raises(DataError, match=rf"has no \{SUFFIXES[name]} file in it"):
        read(name, tmp_path)


def test_a_link_that_leads_nowhere_is_not_passed_over(read, write, tmp_path):
    """A shard that is missing is an error, as if it were named."""
    directory = write("here", "all/a.txt").parent
    (directory / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"b\.txt cannot be read: No such file"):
        read("text", directory)


@pytest.mark.parametrize("path", ["", "  ", "a\0b", "x" * 5000, "~nobody-of-this-name/x"])
def test_what_cannot_be_a_path_gives_one_line(read, path):
    """Whatever stands in a configuration ends as an error of ours."""
    with pytest.raises(DataError) as caught:
        read("text", path)
    assert "\n" not in str(caught.value)


def test_paragraphs_end_at_blank_lines_and_with_the_file(read, write):
    """Lines that belong together stay together; how many blank ones follow says nothing."""
    directory = write("\n\na\nb  \n \t \n\n\nc\n\n", "all/1.txt").parent
    write("d", "all/2.txt")
    write("\ne\n", "all/3.txt")
    assert read("text", directory) == ["a\nb  ", "c", "d", "e"]


def test_a_file_can_be_one_text(read, write):
    """Articles that have a file each are kept whole."""
    directory = write("a\r\n\r\nb\r\n", "all/1.txt").parent
    write("c", "all/2.txt")
    assert read("text", directory, documents="file") == ["a\n\nb", "c"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_json_lines_give_back_what_was_written(tmp_path_factory, texts):
    """Line ends, quotes and whatever else is in a text come through."""
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    path.write_text("".join(json.dumps({"n": 1, "body": text}) + "\n" for text in texts))
    assert list(JsonLines(str(path), field="body").texts()) == texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_csv_gives_back_what_was_written(tmp_path_factory, texts):
    """Line ends, quotes and delimiters in a field come through."""
    path = tmp_path_factory.getbasetemp() / "round-trip.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writerows([("n", "body"), *((1, text) for text in texts)])
    assert list(CsvFiles(str(path), column="body", delimiter="\t").texts()) == texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))))
def test_text_files_give_back_the_paragraphs_that_were_written(tmp_path_factory, texts):
    """No character but a line end divides a text."""
    path = tmp_path_factory.getbasetemp() / "round-trip.txt"
    texts = [f"({text})" for text in texts]
    path.write_bytes("\n\n".join(texts).encode())
    assert list(TextFiles(str(path)).texts()) == texts


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'text': 'x'}", r"is no JSON: Expecting property name .* at column 2"),
        ('{"text": "x"', "is no JSON"),
        ("[1, 2]", "is an array, not an object"),
        ('"x"', "is a text, not an object"),
        ("3", "is a number, not an object"),
        ('{"text": null}', 'field "text" is null, not a text'),
        ('{"text": true}', 'field "text" is true, not a text'),
        ('{"text": {}}', 'field "text" is an object, not a text'),
        (r'{"text": "a\ud83d"}', r"half a surrogate pair, \\ud83d"),
        ('{"text": ' + "[" * 100_000, "cannot be read"),
        ('{"text": ' + "9" * 10_000 + "}", "cannot be read"),
    ],
    ids=lambda value: value[:20],
)
def test_a_line_that_is_no_object_with_a_text_is_named(read, write, line, said):
    """One bad line among millions is found by its number; blank lines count."""
    path = write(f'{{"text": "x"}}\n\n{line}\n')
    with pytest.raises(DataError, match=said) as caught:
        read("jsonl", path)
    assert str(caught.value).startswith(f"{path}:3")
    assert "\n" not in str(caught.value)


def test_a_missing_field_names_its_line_and_what_there_is(read, write):
    """The error says how to choose the field that was meant."""
    path = write('{"text": "x"}\n{"txt": "y", "id": 2}\n')
    with pytest.raises(DataError) as caught:
        read("jsonl", path)
    assert str(caught.value) == (
        f'{path}:2 has no field "text". Did you mean "txt"? '
        "It has: txt, id. Choose one with field=NAME."
    )


def test_a_missing_column_names_what_there_is(read, write):
    """The error says how to choose the column that was meant."""
    path = write("id,body\n1,x\n")
    with pytest.raises(DataError) as caught:
        read("csv", path)
    assert str(caught.value) == (
        f'{path}:1 has no column "text". It has: id, body. Choose one with column=NAME.'
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1,a,b\n", "has 3 fields, and the header 2"),
        ("1\n", "has 1 fields, and the header 2"),
        ('1,"a"b\n', "begins a row that is no CSV"),
        ('1,"never\nclosed\n', "begins a row that is no CSV: unexpected end of data"),
    ],
)
def test_a_malformed_row_is_named_by_its_first_line(read, write, rows, said):
    """A row that has lines of its own in it does not hide where the next one is."""
    path = write('id,text\n1,"two\nlines"\n\n' + rows + "2,c\n")
    with pytest.raises(DataError) as caught:
        read("csv", path)
    assert str(caught.value).startswith(f"{path}:5 {said}")


def test_a_text_in_csv_may_be_long(read, write):
    """A book in a field is longer than what the csv module takes by itself."""
    book = "word " * 100_000
    assert read("csv", write(f'text\n"{book}"\n')) == [book]


@pytest.mark.parametrize("delimiter", ["", "::", '"', "\n"])
def test_an_impossible_delimiter_is_refused(make, delimiter):
    """It is refused before a file is opened."""
    with pytest.raises(DataError, match=r"cannot delimit fields\. Give one character"):
        make("csv", "nowhere", delimiter=delimiter)


@pytest.mark.parametrize("name", FORMS)
def test_an_empty_file_has_no_texts(read, write, name):
    """An empty shard is no error of the others."""
    assert read(name, write("")) == []


def test_python_brings_documentation_to_read(read):
    """There is real text to try things on, without a network."""
    texts = read("python_docs", "topics")
    assert len(texts) > 50
    assert sum(map(len, texts)) > 300_000
    assert any('The "return" statement' in text for text in texts)


def test_python_has_one_data_set(make):
    """A word that names no part of the documentation is told the one that does."""
    with pytest.raises(DataError, match=r'has no data set "topic"\. It has: topics\.'):
        make("python_docs", "topic")


@pytest.mark.parametrize(("name", "library"), [("parquet", "pyarrow"), ("huggingface", "datasets")])
def test_a_library_that_is_not_installed_is_named(make, monkeypatch, name, library):
    """What needs a library says which, and how to get it, when it is asked for."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError) as caught:
        make(name, "whatever")
    assert f"Install it: pip install {library}." in str(caught.value)


@pytest.fixture
def parquet(tmp_path):
    """Write a Parquet file of these columns."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(**columns: object) -> Path:
        path = tmp_path / "data.parquet"
        parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
        return path

    return write


def test_parquet_gives_the_texts_of_a_column(read, parquet):
    """Row groups and batches make no difference."""
    texts = [f"text {number}" for number in range(3000)]
    assert read("parquet", parquet(id=list(range(3000)), body=texts), column="body") == texts


def test_a_parquet_file_is_read_as_far_as_it_is_asked_for(make, parquet):
    """A data set larger than memory can be looked at."""
    texts = make("parquet", parquet(text=[str(number) for number in range(5000)])).texts()
    assert list(islice(texts, 2)) == ["0", "1"]
    texts.close()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"txt": ["a"]}, 'has no column "text". Did you mean "txt"? It has: txt.'),
        ({"text": ["a", None]}, 'row 1: column "text" is null, not a text'),
        ({"text": [1, 2]}, 'row 0: column "text" is int, not a text'),
    ],
)
def test_a_parquet_file_without_texts_says_what_it_has(read, parquet, columns, said):
    """The error names the row, or the columns there are."""
    with pytest.raises(DataError) as caught:
        read("parquet", parquet(**columns))
    assert said in str(caught.value)


def test_what_is_no_parquet_file_gives_one_line(read, write):
    """A file that git-lfs left as a pointer is not taken for a data set."""
    pytest.importorskip("pyarrow")
    path = write("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"data cannot be read: ArrowInvalid") as caught:
        read("parquet", path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_layout(write, monkeypatch, tmp_path):
    """A directory laid out as a data set of the hub, and a cache of the test's own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write('{"text": "one", "n": 1}\n{"text": "two", "n": 2}\n', "hub/train.jsonl")
    return write('{"text": "three", "n": 3}\n', "hub/test.jsonl").parent


def test_a_data_set_of_the_hub_gives_the_texts_of_a_split(read, hub_layout):
    """The library that everyone uses reads it, so it reads what everyone has."""
    assert read("huggingface", hub_layout) == ["one", "two"]
    assert read("huggingface", hub_layout, split="test") == ["three"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "tset"}, "Available splits"),
        ({"config": "none"}, "Available: ['default']"),
        ({"field": "txt"}, 'row 0 has no field "txt". Did you mean "text"?'),
        ({"field": "n"}, 'row 0: field "n" is int, not a text'),
    ],
)
def test_what_a_data_set_of_the_hub_does_not_have_is_said(read, hub_layout, options, said):
    """The error names what there is instead."""
    with pytest.raises(DataError) as caught:
        read("huggingface", hub_layout, **options)
    assert said in str(caught.value)


def test_a_data_set_that_cannot_be_looked_up_gives_one_line(read, hub_layout):
    """Without a network there is neither a traceback nor a long wait."""
    with pytest.raises(DataError, match='"no-one/nothing" cannot be read') as caught:
        read("huggingface", "no-one/nothing")
    assert "\n" not in str(caught.value)
