"""Files as people bring them, and what is right for each."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

HEADER = "text,label\n"
ROWS = "".join(f"word {i},{i % 2}\n" for i in range(6))
NAMED = HEADER + "".join(f"word {i},{'np'[i % 2]}\n" for i in range(6))
OBJECTS = [{"text": f"word {i}", "label": "np"[i % 2]} for i in range(6)]
LINES = "".join(f"{json.dumps(row)}\n" for row in OBJECTS)
Content = str | bytes | Callable[[Path], Any]


@dataclass
class Brought:
    """What somebody brings, and what is right: ``said`` after the file's name and the first row's text, or ``why``."""

    content: Content | dict[str, Content]
    said: str | None = None
    why: str = ""
    name: str = "a.csv"
    first: str | None = None
    classes: tuple[str, ...] | None = None
    labels: dict[str, list[int]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def right(content: Any, said: str | None, name: str = "a.csv", **fields: Any) -> Brought:
    known = {key: fields.pop(key) for key in ("first", "classes", "labels") if key in fields}
    settings = {key.rstrip("_"): value for key, value in fields.items()}
    return Brought(content, said=said, name=name, settings=settings, **known)


def wrong(content: Any, why: str, name: str = "a.csv", **settings: Any) -> Brought:
    return Brought(content, why=why, name=name, settings=settings)


def texts(*rows: str, header: str = HEADER) -> str:
    return header + "".join(f"{row}\n" for row in rows) + ROWS


def table(**columns: Any) -> Callable[[Path], Any]:
    return lambda path: pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=2)


def arrays(**arrays: Any) -> Callable[[Path], Any]:
    return lambda path: np.savez(path, **arrays)


def stream(batches: int = 1, ends: bool = True) -> bytes:
    rows, sink = pa.table({"text": ["a", "b"], "label": ["x", "y"]}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        for _ in range(batches):
            writer.write_table(rows)
        size = sink.tell()
    return sink.getvalue().to_pybytes()[: None if ends else size]


def hub(names: list[str], *labels: int) -> datasets.Dataset:
    """A table of the library datasets, whose labels have names."""
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict({"text": [f"a{i}" for i in labels], "label": labels}, features=features)


def saved(train: datasets.Dataset, **splits: datasets.Dataset) -> Callable[[Path], Any]:
    return lambda path: datasets.DatasetDict(train=train, **splits).save_to_disk(path)


SIX = "6 rows, 2 columns, 2 classes (0, 1)"
NP = "6 rows, 2 columns, 2 classes (n, p)"
SEVEN = "7 rows, 2 columns, 2 classes (0, 1)"
QUOTE = r"allowed is .*data\.quote=none if quotes are plain characters"
UTF8 = r"^data\.encoding=None: a\.\w+ isn't UTF-8; allowed is UTF-8, or the name of the file's encoding"
LIST = r"^data\.path=.*: allowed is a list of objects with one comma between them$"

BROUGHT = {
    # ------------------------------------------------------------------------------------------------- csv: quotes
    "quotes inside of a text": right(texts('a 5" wide,0', 'b "c" d,1'), "8 rows, 2 columns, 2 classes (0, 1)"),
    "a quote that is never closed": wrong(texts('"a,0'), rf"line 2: a quote isn't closed; {QUOTE}"),
    "a quote that swallows rows": wrong(
        texts('"a,0', "b,1", 'c 5",0'),
        rf"the quoted text in line 2 looks like 3 rows; {QUOTE}, or data\.quote=double if",
    ),
    "a quote that swallows rows of names": wrong(
        'label,text\n0,"a\n1,b\n0,c"\n1,d\n', rf"the quoted text in line 2 looks like 3 rows; {QUOTE}"
    ),
    "such quotes as plain characters": right(
        texts('"a,0', "b,1", 'c 5",0'), "9 rows, 2 columns, 2 classes (0, 1)", first='"a', quote="none"
    ),
    "such quotes that are right": right(
        texts('"a,0', "b,1", 'c 5",0'), f"{SEVEN}, line breaks in 1 text", first="a,0\nb,1\nc 5", quote="double"
    ),
    "a quote that ends in another row's": wrong(
        texts('"a,0', '"b,1'), rf"line 2: text follows a closing quote; {QUOTE}"
    ),
    "line breaks and doubled quotes in quotes": right(
        texts('"a\n\nb, ""c"", d",0'), f"{SEVEN}, line breaks in 1 text", first='a\n\nb, "c", d'
    ),
    "quotes escaped by backslashes": wrong(texts(r'"a said \"b\"",0'), r"line 2: text follows a closing quote"),
    "text after a quoted word": wrong(texts('"good" film,0'), rf"line 2: text follows a closing quote; {QUOTE}"),
    "single quotes": wrong(texts("'a, b',0"), r"CSV parse error: Row #2: Expected 2 columns, got 3"),
    "single quotes that are said": right(texts("'a, b',0"), SEVEN, first="a, b", quote="single"),
    "quotes that are no such": wrong(texts(), r"^data\.quote=x: allowed is double, single, none$", quote="x"),
    # --------------------------------------------------------------------------------------------------- csv: rows
    "carriage returns alone": right(texts().replace("\n", "\r"), SIX),
    "a byte order mark and Windows' line ends": right("\ufeff" + texts().replace("\n", "\r\n"), SIX),
    "blank lines": right(texts().replace("\n", "\n\n"), SIX),
    "a header that comes again": wrong(texts() + texts(), r"row 7 after the header repeats it"),
    "two columns of one name": wrong("text,label,text\n" + ROWS.replace("\n", ",x\n"), r"column 3 has another's"),
    "columns without names": right(
        "text,label,,\n" + ROWS.replace("\n", ",,\n"), "6 rows, 4 columns, 2 classes (0, 1)"
    ),
    "a short row": wrong(texts("a"), r"Row #2: Expected 2 columns, got 1"),
    "a delimiter too many": wrong(texts("a,0,"), r"Row #2: Expected 2 columns, got 3"),
    "zero bytes in a text": right(texts("a\0b,0"), SEVEN, first="a\0b"),
    "no bytes": wrong("", "it is empty; allowed is a data set with examples$"),
    "only a header": wrong(HEADER, r"it is empty; allowed is a data set with examples$"),
    "two rows": wrong(
        HEADER + "a,0\nb,1\n", r"^data\.test=0\.1: 2 examples are too few for train and the", validation=0.1, test=0.1
    ),
    "one column": wrong("text\na\nb\n", r"^data\.label=None: .*; allowed is text$"),
    "empty texts": right(texts(",0", "  ,1"), "8 rows, 2 columns, 2 classes (0, 1), 2 empty texts", first=""),
    "rows that come again": right(
        texts("word 0,0", "word 0,0"), "8 rows, 2 columns, 2 classes (0, 1), 2 repeated rows"
    ),
    "a row in train and in test": right(
        "text,label,split\na,0,train\nb,1,train\na,0,test\n",
        "3 rows (2 train + 1 test), 3 columns, 2 classes (0, 1), 1 repeated rows",
    ),
    "rows of a split that is none": right(
        "text,label,split\na,0,train\nb,1,train\nc,0,holdout\n",
        "2 rows, 3 columns, 2 classes (0, 1), 1 rows of the split holdout not used",
    ),
    "rows of the split eval": right(
        "text,label,split\na,0,train\nb,1,train\nc,0,eval\n", "3 rows (2 train + 1 test), 3 columns, 2 classes (0, 1)"
    ),
    "splits in upper case": right(
        "text,label,split\na,0,Train\nb,1, TRAIN\nc,0,Test\n", "3 rows (2 train + 1 test), 3 columns, 2 classes (0, 1)"
    ),
    "a row without a split": wrong(
        "text,label,split\na,0,train\nb,1,\n", r"split lacks in some; allowed is a split for"
    ),
    # ------------------------------------------------------------------------------------------------- csv: labels
    "labels from 1 to 5": right(
        HEADER + "".join(f"a{i},{i % 5 + 1}\n" for i in range(9)), "9 rows, 2 columns, 5 classes (1, 2, 3, 4, 5)"
    ),
    "labels with leading zeros": right(
        HEADER + "a,00123\nb,00124\nc,123\n", "3 rows, 2 columns, 3 classes (00123, 00124, 123)"
    ),
    "labels of 20 digits": right(
        HEADER + "a,12345678901234567890\nb,12345678901234567891\n",
        "2 rows, 2 columns, 2 classes (12345678901234567890, 12345678901234567891)",
    ),
    "labels with blanks before them": right(texts().replace(",0", ", 0").replace(",1", ", 1"), SIX, classes=("0", "1")),
    "booleans": right(HEADER + "a,true\nb,False\n", None),
    "booleans and a number": right(HEADER + "a,TRUE\nb,1\nc,false\n", "3 rows, 2 columns, 3 classes (1, TRUE, false)"),
    "dates": right(HEADER + "a,2020-01-01\nb,2020-01-02\n", "2 rows, 2 columns, 2 classes (2020-01-01, 2020-01-02)"),
    "decimal commas": right(
        "text;label\na;1,5\nb;2,5\n",
        "2 rows, 2 columns, 2 classes (1,5, 2,5), delimiter semicolon",
        classes=("1,5", "2,5"),
    ),
    "thousands": right(HEADER + 'a,"1,000"\nb,"2,000"\n', None, classes=("1,000", "2,000")),
    "labels from -1 to 1": wrong(
        HEADER + "a,-1\nb,0\nc,1\n",
        r"there are labels below 0; allowed is .*data\.classes=\[\.\.\.\].*, out of -1, 0, 1$",
    ),
    "labels of -1 and 1": wrong(HEADER + "a,-1\nb,1\n", r"there are labels below 0; allowed is .*out of -1, 1$"),
    "labels from -1 to 1 that are said": right(
        HEADER + "a,-1\nb,0\nc,1\n",
        "3 rows, 2 columns, 3 classes (-1, 0, 1)",
        classes=("-1", "0", "1"),
        classes_=[-1, 0, 1],
    ),
    "numbers with a fraction": wrong(
        HEADER + "a,0.0\nb,1.0\n", r"^data\.label=label: it holds double; allowed is a col"
    ),
    "an empty label": wrong(NAMED + "a,\n", r"^data\.label=label: 1 labels are missing"),
    "NA among numbers": wrong(texts("a,NA"), r"^data\.label=label: 1 labels are missing"),
    "NA among names": right(NAMED + "a,NA\n", "7 rows, 2 columns, 3 classes (NA, n, p), 'NA' is a class"),
    "nan among names": right(NAMED + "a,nan\n", "7 rows, 2 columns, 3 classes (n, nan, p), 'nan' is a class"),
    "names that differ in blanks": right(
        NAMED + "a,p \n",
        "7 rows, 2 columns, 3 classes (n, p, p ), classes 'p' and 'p ' differ only in upper case or blanks",
    ),
    "texts that are NA": right(HEADER + "NA,0\nnan,1\n", "2 rows, 2 columns, 2 classes (0, 1)", first="NA"),
    "texts that are dates": right(HEADER + "2020-01-01,0\n2020-01-02,1\n", None, first="2020-01-01"),
    "ids of 20 digits": right("text,label,id\na,0,12345678901234567890\nb,1,12345678901234567891\n", None, column="id"),
    # --------------------------------------------------------------------------------------------- csv: delimiters
    "semicolons": right("text;label\n" + ROWS.replace(",", ";"), f"{SIX}, delimiter semicolon"),
    "semicolons, and commas in texts": right(
        "text;label\na, b;0\n" + ROWS.replace(",", ";"), f"{SEVEN}, delimiter semicolon"
    ),
    "semicolons, and columns that are named": right(
        "review;stars\n" + ROWS.replace(",", ";"), f"{SIX}, delimiter semicolon", text="review", label="stars"
    ),
    "semicolons, and columns that aren't": wrong(
        "review;stars\n" + ROWS.replace(",", ";"), r"^data\.label=None: .*; allowed is review, stars$"
    ),
    "tabs": right("text\tlabel\n" + ROWS.replace(",", "\t"), f"{SIX}, delimiter tab"),
    "bars": right("text|label\n" + ROWS.replace(",", "|"), f"{SIX}, delimiter bar"),
    "commas in a tsv": right(texts(), f"{SIX}, delimiter comma", "a.tsv"),
    "a txt with tabs": right("text\tlabel\n" + ROWS.replace(",", "\t"), SIX, "a.txt"),
    "a delimiter that is said": right("text^label\n" + ROWS.replace(",", "^"), f"{SIX}, delimiter ^", delimiter="^"),
    "a delimiter of two characters": wrong(
        texts(), r"^data\.delimiter=::: allowed is one character, or", delimiter="::"
    ),
    "another delimiter in the header": wrong("text;label\n" + ROWS, r"Row #2: Expected 2 columns, got 1"),
    # -------------------------------------------------------------------------------------------------- encodings
    "latin-1": right(texts("café,0").encode("latin-1"), f"{SEVEN}, encoding cp1252", first="café"),
    "German in cp1252": right(
        texts("Größe – schön ’s,0").encode("cp1252"), f"{SEVEN}, encoding cp1252", first="Größe – schön ’s"
    ),
    "letters that other encodings have too": wrong(texts("à la,0").encode("cp1252"), UTF8),
    "an encoding that is said": right(
        texts("à la,0").encode("cp1252"), f"{SEVEN}, encoding cp1252", first="à la", encoding="cp1252"
    ),
    "Russian": wrong(texts("Привет,0").encode("cp1251"), UTF8),
    "Japanese": wrong(texts("こんにちは,0").encode("shift_jis"), UTF8),
    "Japanese that is said": right(
        texts("こんにちは,0").encode("shift_jis"),
        f"{SEVEN}, encoding shift_jis",
        first="こんにちは",
        encoding="shift_jis",
    ),
    "rows of two encodings": wrong(texts("é,0").encode() + "é a,0\n".encode("latin-1"), UTF8),
    "another encoding in a column that isn't used": right(b"text,label,x\na,0,\xe0\xff\nb,1,y\n", None),
    "UTF-16": right(texts().encode("utf-16"), f"{SIX}, encoding utf-16"),
    "UTF-16 without a mark": right(texts().encode("utf-16-be"), f"{SIX}, encoding utf-16-be"),
    "UTF-16 that is cut off": wrong(texts().encode("utf-16")[:-1], r"^data\.encoding=utf-16: a\.csv isn't in it"),
    "UTF-32": right(texts().encode("utf-32"), f"{SIX}, encoding utf-32"),
    "no such encoding": wrong(texts(), r"^data\.encoding=nope: there is no such encoding", encoding="nope"),
    "a codec that isn't of texts": wrong(texts(), r"^data\.encoding=hex: there is no such encoding", encoding="hex"),
    "an encoding that is wrong": wrong(texts("é,0"), r"^data\.encoding=ascii: a\.csv isn't in it", encoding="ascii"),
    # ------------------------------------------------------------------------------------------------- compressed
    "gz": right(gzip.compress(texts().encode()), SIX, "a.csv.gz"),
    "gz in two parts": right(gzip.compress(texts().encode()) + gzip.compress(b"b,0\n"), SEVEN, "a.csv.gz"),
    "gz that is cut off": wrong(
        gzip.compress(texts().encode())[:-9],
        r"Truncated compressed stream; allowed is a whole gzip file$",
        "a.csv.gz",
    ),
    "gz that is none": wrong(texts(), r"allowed is a whole gzip file$", "a.csv.gz"),
    "bz2 in capitals": right(bz2.compress(texts().encode()), SIX, "A.CSV.BZ2"),
    "zst": right(pa.compress(LINES.encode(), "zstd", asbytes=True), NP, "a.jsonl.zst"),
    # ------------------------------------------------------------------------------------------------------- json
    "a list of objects": right(json.dumps(OBJECTS), NP, "a.json"),
    "a list of objects in many lines": right("\ufeff" + json.dumps(OBJECTS, indent=1), NP, "a.json"),
    "a list with brackets in texts": right(
        json.dumps([{"text": 'a],[{}"', "label": "x", "m": [{"a": [1]}]}, {"text": "}]", "label": "y"}]),
        "2 rows, 3 columns, 2 classes (x, y)",
        "a.json",
        first='a],[{}"',
    ),
    "a list that is cut off": wrong(json.dumps(OBJECTS)[:-1], LIST, "a.json"),
    "a list with a comma too many": wrong(json.dumps(OBJECTS)[:-1] + ",]", LIST, "a.json"),
    "a list with a comma too few": wrong(f"[{json.dumps(OBJECTS[0])}{json.dumps(OBJECTS[1])}]", LIST, "a.json"),
    "two lists": wrong(json.dumps(OBJECTS) * 2, LIST, "a.json"),
    "a list with nothing among the objects": wrong(f"[{json.dumps(OBJECTS[0])},null]", LIST, "a.json"),
    "a list of numbers": wrong("[1, 2]", LIST, "a.json"),
    "an empty list": wrong("[]", r"it is empty; allowed is a data set with examples$", "a.json"),
    "an object of columns": right(json.dumps(pandas.DataFrame(OBJECTS).to_dict("list")), NP, "a.json"),
    "columns of different lengths": wrong(
        '{"text": ["a", "b"], "label": ["x"]}',
        r"text has 2, label has 1; allowed is lists of the same length$",
        "a.json",
    ),
    "a list inside of an object": wrong(
        json.dumps({"version": 1, "data": OBJECTS}), r"rows lie inside of the key data; allowed is the list", "a.json"
    ),
    "columns with unusual names": wrong(
        '{"review": ["a", "b"], "stars": [1, 2]}', r"^data\.label=None: .*; allowed is review, stars$", "a.json"
    ),
    "an object of objects": wrong(pandas.DataFrame(OBJECTS).to_json(), r"^data\.text=text: it holds dict", "a.json"),
    "lines with different keys": right(
        LINES + '{"label": "p", "z": 1}\n', "7 rows, 3 columns, 2 classes (n, p), 1 empty texts", "a.jsonl"
    ),
    "lines with blank ones between": right("\ufeff" + LINES.replace("\n", "\n\n"), NP, "a.jsonl"),
    "lines with commas": wrong(
        LINES.replace("\n", ",\n"), r"JSON parse error; allowed is a readable \.jsonl", "a.jsonl"
    ),
    "null": wrong("null", r"it begins with null; allowed is an object for each row$", "a.json"),
    "a list of null": wrong("[null]", r"it begins with null; allowed is an object for each row$", "a.json"),
    "null before the rows": wrong("\n null\n" + LINES, r"it begins with null; allowed is an object", "a.jsonl"),
    "a line of null": wrong(LINES + "null\n", r"it holds 6 rows, and 7 were read", "a.jsonl"),
    "a line without a label": wrong(LINES + '{"text": "a"}\n', r"^data\.label=label: 1 labels are missing", "a.jsonl"),
    "lines in UTF-16": right(LINES.encode("utf-16"), f"{NP}, encoding utf-16", "A.NDJSON"),
    "lines in another encoding": wrong('{"text": "à", "label": "n"}'.encode("latin-1"), UTF8, "a.jsonl"),
    "dates and zeros in lines": right(
        '{"text": "2020-01-01", "label": "2020-01-01"}\n{"text": "2020-01-02", "label": "00123"}\n',
        "2 rows, 2 columns, 2 classes (00123, 2020-01-01)",
        "a.jsonl",
        first="2020-01-01",
    ),
    "labels that are all dates": right(
        '{"text": "a", "label": "2020-01-01"}\n{"text": "b", "label": "2021-01-01"}\n',
        "2 rows, 2 columns, 2 classes (2020-01-01, 2021-01-01)",
        "a.jsonl",
    ),
    "ids of 20 digits in lines": wrong(
        "".join(f'{{"text": "a", "label": {i}, "id": {12345678901234567890 + i}}}\n' for i in range(2)),
        r"^data\.column=rounded numbers: allowed is integers below 2\^63, or texts$",
        "a.jsonl",
        column="id",
    ),
    "chats": wrong(
        '{"messages": [{"role": "user", "content": "a"}]}\n',
        r"^data\.response=messages: chats, .*aren't read",
        "a.jsonl",
    ),
    "chats that are named": wrong(
        '{"messages": [{"role": "user", "content": "a"}]}\n',
        r"^data\.response=messages: chats, .*aren't read",
        "a.jsonl",
        response="messages",
    ),
    "lists of labels": wrong('{"text": "a", "labels": [0, 1]}\n' * 3, r"^data\.label=list", "a.jsonl"),
    "lists of words": wrong(
        '{"tokens": ["a"], "tags": [1]}\n' * 3,
        r"^data\.text=tokens: it holds List",
        "a.jsonl",
        text="tokens",
        label="tags",
    ),
    # ---------------------------------------------------------------------------------------------------- parquet
    "several groups, a nested column and an empty one": right(
        table(text=list("abcdef"), label=["n", "p"] * 3, x=[{"a": [1]}] * 6, y=pa.nulls(6)),
        "6 rows, 4 columns, 2 classes (n, p)",
        "A.PARQUET",
    ),
    "categories and missing texts": right(
        table(text=[None, "a", ""], label=pa.array(["x", "y", "x"]).dictionary_encode()),
        "3 rows, 2 columns, 2 classes (x, y), 2 empty texts",
        "a.parquet",
    ),
    "texts as polars writes them": right(
        table(text=pa.array(list("ab"), pa.string_view()), label=pa.array(list("xy"), pa.string_view())),
        "2 rows, 2 columns, 2 classes (x, y)",
        "a.parquet",
        first="a",
    ),
    "names of classes": right(
        lambda path: hub(["zebra", "ant"], 0, 1).to_parquet(path),
        "2 rows, 2 columns, 2 classes (zebra, ant)",
        "a.parquet",
    ),
    "a class without examples": right(
        lambda path: hub(["zebra", "ant", "cow"], 0, 1).to_parquet(path),
        "2 rows, 2 columns, 3 classes (zebra, ant, cow), train without 1 class (cow)",
        "a.parquet",
    ),
    "a column of labels without any": wrong(
        table(text=["a", "b"], label=pa.nulls(2)), r"^data\.label=label: 2 labels are missing", "a.parquet"
    ),
    "feather": right(
        lambda path: pyarrow.feather.write_feather(pa.table({"text": ["a", "b"], "label": ["x", "y"]}), str(path)),
        "2 rows, 2 columns, 2 classes (x, y)",
        "a.feather",
    ),
    "an arrow stream": right(stream(), "2 rows, 2 columns, 2 classes (x, y)", "a.arrow"),
    "an arrow stream that is cut off between two batches": wrong(
        stream(2, ends=False), r"^data\.path=.*: its end doesn't come right after the 4 rows that were read", "a.arrow"
    ),
    "two arrow streams in one file": wrong(
        stream() + stream(), r"^data\.path=.*: its end doesn't come right after the 2 rows that were read", "a.arrow"
    ),
    "an arrow file that is cut off": wrong(
        lambda path: (
            pyarrow.feather.write_feather(pa.table({"text": ["a"] * 9}), str(path))
            or path.write_bytes(path.read_bytes()[:-20])
        ),
        r"Not an Arrow file; allowed is a readable \.arrow file$",
        "a.arrow",
    ),
    "an arrow file that is none": wrong(b"ARROW1" + b"x" * 30, r"allowed is a readable \.arrow file$", "a.arrow"),
    # ------------------------------------------------------------------------------------------------------ arrays
    "arrays of no split": right(
        arrays(x_train=np.zeros((4, 8, 8)), y_train=[0, 1] * 2, x_more=np.zeros((4, 8, 8))),
        "4 rows, 2 columns, 2 classes (0, 1), arrays x_more not used",
        "a.npz",
    ),
    "labels of the shape (n, 1)": right(
        arrays(x_train=np.zeros((4, 8, 8)), y_train=[[0], [1]] * 2), "4 rows, 2 columns, 2 classes (0, 1)", "a.npz"
    ),
    "labels that are texts": right(
        arrays(x_train=np.zeros((4, 8, 8)), y_train=["p", "n"] * 2), "4 rows, 2 columns, 2 classes (n, p)", "a.npz"
    ),
    "a column for each class": wrong(
        arrays(x_train=np.zeros((3, 8, 8)), y_train=np.eye(3)),
        r"y_train has shape .3, 3.; allowed is .*labels",
        "a.npz",
    ),
    "rows of pixels": wrong(
        arrays(x_train=np.zeros((3, 64)), y_train=[0, 1, 0]), r"x_train has shape .3, 64.; allowed is images", "a.npz"
    ),
    "labels that are bytes": wrong(
        arrays(x_train=np.zeros((2, 8, 8)), y_train=[b"a", b"b"]), r"y_train holds \|S1; allowed is arrays of", "a.npz"
    ),
    "arrays of different lengths": wrong(
        arrays(x_train=np.zeros((4, 8, 8)), y_train=[0, 1, 0]), r"allowed is a readable \.npz file$", "a.npz"
    ),
    "a workbook": wrong(b"PK", r"a\.xlsx: allowed is a file whose name ends in \.parquet, ", "a.xlsx"),
    "an archive": wrong(
        b"PK", r"a\.csv\.zip: allowed is a file whose name ends in .*; text files also with \.gz", "a.csv.zip"
    ),
    # ---------------------------------------------------------------------------------------------------- folders
    "splits with labels of different types": right(
        {
            "train.jsonl": '{"text": "a", "label": true}\n{"text": "b", "label": false}\n',
            "test.csv": HEADER + ",0\n,1\n",
        },
        "4 rows (2 train + 2 test), 2 columns, 2 classes (0, 1), 2 empty texts, 2 files",
        "a",
    ),
    "splits with texts and numbers as labels": wrong(
        {"train.csv": NAMED, "test.csv": texts()},
        r"^data\.label=label: train has texts, test has int64; allowed is labels of one type",
        "a",
    ),
    "splits that number the same classes differently": right(
        saved(hub(["zebra", "ant"], 0, 1, 0), test=hub(["ant", "zebra"], 0, -1)),
        None,
        "a",
        labels={"test": [1]},
        classes_=[0, 1],
    ),
    "a split with a class that train doesn't know": wrong(
        saved(hub(["zebra", "ant"], 0, 1), test=hub(["cow", "zebra"], 0, 1)),
        r"^data\.label=label: test has the class cow, train doesn't; allowed is zebra, ant$",
        "a",
    ),
    "a class that only test has": right(
        {"train.csv": NAMED, "test.csv": HEADER + "a,z\n"},
        "7 rows (6 train + 1 test), 2 columns, 3 classes (n, p, z), 2 files, train without 1 class (z)",
        "a",
    ),
    "a split with hidden labels": right(
        {"train.csv": texts(), "test.csv": HEADER + "a,-1\nb,-1\n"},
        "8 rows (6 train + 2 test), 2 columns, 2 classes (0, 1), 2 files, test not used, because its labels are hidden",
        "a",
    ),
    "a folder of splits": right(
        {
            "train.csv": texts(),
            "Test.CSV": texts("a,0"),
            "LICENSE.txt": "free",
            ".hidden.csv": "x",
            "below/dev.csv": texts(),
        },
        "13 rows (6 train + 7 test), 2 columns, 2 classes (0, 1), 6 repeated rows, 2 files, 1 in subfolders not read",
        "a",
    ),
    "folders of splits": right(
        {"train/a.csv": texts(), "train/b.csv": texts(), "val/a.jsonl": LINES.replace('"n"', "0").replace('"p"', "1")},
        "18 rows (12 train + 6 validation), 2 columns, 2 classes (0, 1), 12 repeated rows, 3 files",
        "a",
    ),
    "shards": right(
        {f"train-{i}-of-2.parquet": table(text=[f"a{i}", f"b{i}"], label=[0, 1]) for i in range(2)},
        "4 rows, 2 columns, 2 classes (0, 1), 2 files",
        "a",
    ),
    "files without names of splits": right({"contest.csv": texts(), "b.csv": texts("a,0")}, None, "a"),
    "a folder that looks like a file": right({"part-0.csv": texts(), "_SUCCESS": ""}, f"{SIX}, 1 file", "a.csv"),
    "a folder of the library datasets": right(
        lambda path: datasets.Dataset.from_list(OBJECTS).save_to_disk(path), f"{NP}, 1 file", "a"
    ),
    "a file that belongs to no split": wrong(
        {"train.csv": texts(), "more.csv": texts()}, r"no split in the name of more\.csv;", "a"
    ),
    "one split in two formats": wrong(
        {"train.csv": texts(), "train.csv.gz": gzip.compress(texts().encode())},
        r"which may be the same rows twice",
        "a",
    ),
    "a file of two splits": wrong(
        {"train_test.csv": texts()}, r"it says test, train; allowed is a name that says one", "a"
    ),
    "shards with other columns": wrong(
        {"a.csv": texts(), "b.csv": "text,label,split\na,0,train\n"}, r"same columns$", "a"
    ),
    "shards with other types": wrong({"a.csv": texts(), "b.csv": NAMED}, r"label has a different type in some", "a"),
    "a name that its column denies": wrong(
        {"test.csv": "text,label,split\na,0,train\n", "train.csv": "text,label,split\na,0,train\n"},
        r"test\.csv has rows of the split train",
        "a",
    ),
    "a split without labels": wrong(
        {"train.csv": texts(), "test.csv": "text\na\n"}, r"^test\.csv: data\.label=None", "a"
    ),
}


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        for name, inner in content.items():
            put(path / name, inner)
    elif callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
