"""Listings of what is damaged, hostile or secret: the others are listed, nothing runs or leaks."""

import base64
import csv
import hashlib
import html.parser
import io
import json
import re

import pytest
from listing import COMMAND, make_run, rows_of

from xec_jax import runs as command
from xec_jax.errors import ConfigError
from xec_jax.registry import scan
from xec_jax.registry.page import to_html
from xec_jax.registry.page_assets import SCRIPT
from xec_jax.registry.run import Metric
from xec_jax.train import status

EVIL = "<script>alert(1)</script>'\"&"


BIG = '{"step": 3, "epoch": 1e-320, "split": "valid", "loss": 1%s}' % ("0" * 400)
DAMAGE = {
    "config.json": ["", "{", "[]", "null", "[" * 100_000, '{"task": ["toy"]}'],
    "environment.json": ["", "{", "[]", '{"record": 3}', '{"git": 5, "record": {"events": 7}}'],
    "status.json": ["", "{", "[]", '{"state": "flying"}', '{"state": "done", "planned": 3}'],
    "metrics.jsonl": ["", BIG, "\0\0", "[]\nnull\n3\n", '{"step": "x", "split": 3, "loss": {}}\n'],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_runs_are_shown_and_disturb_nobody(tmp_path, capsys, name):
    make_run(tmp_path / "whole")
    for k, text in enumerate(DAMAGE[name]):
        (make_run(tmp_path / f"bad{k}") / name).write_text(text)
    (make_run(tmp_path / "folder") / name).unlink()
    (tmp_path / "folder" / name).mkdir()
    rows = rows_of(tmp_path, capsys=capsys)
    assert len(rows) == 2 + len(DAMAGE[name])
    assert rows["whole"]["state"] == "done"
    for name_of_run, row in rows.items():
        assert row["state"] != "broken" or row["reason"], name_of_run
    assert rows["folder"]["state"] == "broken"
    if name != "metrics.jsonl":
        assert rows["bad0"]["state"] == rows["bad1"]["state"] == rows["bad2"]["state"] == "broken"
    forms = ("text", "csv", "html") if name == "metrics.jsonl" else ("text", "csv")
    for form in forms:
        assert command.main([str(tmp_path), "--format", form]) == 0
        assert "whole" in capsys.readouterr().out


def test_csv_holds_no_formulas(tmp_path, capsys):
    """Spreadsheets run what begins like one."""
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "plain"]
    for k, text in enumerate(texts):
        folder = make_run(tmp_path / f"{k}", losses=(-1.5,), optim__lr=-1e-3 * k)
        config = json.loads((folder / "config.json").read_text())
        config["=key"] = text
        (folder / "config.json").write_text(json.dumps(config))
        made = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps(made | {"note": text}))
    assert command.main([str(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    shown = ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'=1", "plain"]
    assert [row["note"] for row in rows] == shown
    assert [row["'=key"] for row in rows] == shown
    assert {row["best"] for row in rows} == {"-1.5"}, "a number stays one"
    assert float(rows[1]["optim.lr"]) == -1e-3


class Page(html.parser.HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.handlers = [], [], []
        self.open, self.scripts, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "br", "path", "use", "line", "rect"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] in ("a", "summary", "td", "text"):
            self.cells.append(data)


def test_the_page_is_whole_and_self_contained(tmp_path):
    make_run(tmp_path / "one", optim__lr=1e-3)
    make_run(tmp_path / "two", optim__lr=1e-4, losses=(None, 0.5, 0.25))
    status.register(tmp_path / "three", command=COMMAND, note="soon")
    text = to_html(scan.scan(tmp_path, Metric()), Metric(), "Runs")
    page = Page(text)
    assert page.open == [], "every tag is closed"
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.tags.count("script") == 1
    assert page.tags.count("tr") >= 4
    assert page.tags.count("svg") == 2 + 1 + 2, "two legends, the comparison, two runs"
    assert {"one", "two", "three", "0.25 @12", "soon"} <= set(page.cells)
    assert "validation: loss" in page.cells


def test_the_page_escapes_everything(tmp_path):
    name = EVIL.replace("/", "")
    folder = make_run(tmp_path / name, model__evil=EVIL, state="failed")
    make_run(tmp_path / "tame", model__evil="$a$")
    made = json.loads((folder / "status.json").read_text())
    evil = dict.fromkeys(("note", "reason", "job", "host", "started"), EVIL)
    (folder / "status.json").write_text(json.dumps({**made, **evil, "command": [EVIL]}))
    environment = {"git": EVIL, "record": {"events": {"train": EVIL}}}
    (folder / "environment.json").write_text(json.dumps(environment))
    record = {"step": 20, "split": EVIL, "loss": 1.0, EVIL: 2.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    claim = dict.fromkeys(("title", "task", "result", "config", "analysis", EVIL), EVIL)
    (tmp_path / "claims.jsonl").write_text(json.dumps({"kind": "claim", **claim}) + "\n")
    for metric in (Metric(), Metric(EVIL, EVIL)):
        page = Page(to_html(scan.scan(tmp_path, metric), metric, EVIL))
        assert page.scripts == [SCRIPT]
        assert page.handlers == []
        assert any(name in cell for cell in page.cells), "shown as it is"
        assert any(EVIL in cell for cell in page.cells)


def test_the_page_allows_its_own_script_only(tmp_path):
    text = to_html([], Metric(), "Runs")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert "default-src 'none'" in text
    assert f"script-src 'sha256-{digest}'" in text
    assert f"<script>{SCRIPT}</script>" in text


@pytest.mark.parametrize(
    "password",
    ["sesame", "open/sesame", "open@sesame", "1@2/sesame://3"],
    ids=["word", "slash", "at", "all"],
)
def test_secrets_are_hidden(tmp_path, capsys, password):
    uri = f"http://me:{password}@host/mlflow"
    config = {"log__mlflow_uri": uri, "optim__no_decay": (uri,)}
    path = make_run(tmp_path / "a", **config) / "status.json"
    make_run(tmp_path / "b")
    secrets = {"api_password": password, "token": [password], "s3": {"Secret": {"a": password}}}
    for name in ("a/config.json", "b/config.json"):
        config = json.loads((tmp_path / name).read_text())
        config["log"] |= secrets if name[0] == "a" else {}
        (tmp_path / name).write_text(json.dumps(config))
    words = ["train", uri, f"--config.log.api_password={password} and more sesame"]
    made = json.loads(path.read_text()) | {"reason": f"no {uri}", "command": words}
    path.write_text(json.dumps(made | {"note": f"with API_KEY={password}"}))
    planned = {"values": {"task": "toy", "log": secrets}, "overrides": words}
    status.register(tmp_path / "c", command=words, note=uri, planned=planned)
    claim = {"kind": "claim", "title": uri, "result": uri, "config": uri, "password": password}
    (tmp_path / "claims.jsonl").write_text(json.dumps(claim) + "\n")
    for form in ("text", "csv", "json", "html"):
        assert command.main([str(tmp_path), "--format", form]) == 0
        out = capsys.readouterr().out
        assert "sesame" not in out, form
        assert "***@host" in out.replace("\n", "").replace(" ", ""), form


def test_nothing_of_a_run_reaches_the_terminal_raw(tmp_path, capsys):
    """Neither names nor values of a config may move the cursor."""
    evil = "\x1b]0;title\x07\x1b[2J"
    for name in "ab":
        path = make_run(tmp_path / name) / "config.json"
        config = json.loads(path.read_text())
        config["model"][f"{evil}key"] = f"{evil}{name}"
        path.write_text(json.dumps(config))
    for arguments in (["--format", "text"], ["--format", "csv"], ["--format", "html"]):
        assert command.main([str(tmp_path), *arguments]) == 0
        out = capsys.readouterr().out
        assert "key" in out
        assert "\x1b" not in out
        assert "\x07" not in out
    with pytest.raises(ConfigError) as caught:
        rows_of(tmp_path, "--where", "model.key=1", capsys=capsys)
    assert "\x1b" not in str(caught.value)


def test_deep_claims_end_no_listing(tmp_path, capsys):
    make_run(tmp_path / "run")
    deep = '{"kind": "claim", "a": ' + "[" * 700 + "]" * 700 + "}"
    (tmp_path / "claims.jsonl").write_text(deep)
    rows = rows_of(tmp_path, capsys=capsys)
    assert rows["run"]["state"] == "done"
