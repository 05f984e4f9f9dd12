"""The report of an evaluation: whole, self-contained, safe to open, and either there or not."""

import base64
import hashlib
import html.parser
import io
import os
import re

import numpy as np
import pytest

from xec_jax.errors import DiskError, ShapeError
from xec_jax.evaluation.base import Table
from xec_jax.evaluation.report import Picture, Report, to_html, write_report
from xec_jax.evaluation.report_text import number_text
from xec_jax.plots.style import make_figure

EVIL = "<script>alert(1)</script>'\"&`<b>`"
VOID = ("meta", "img", "br")


def png(width_in=3.0, height_in=2.0):
    figure = make_figure(width_in, height_in)
    figure.add_subplot().plot([0, 1], [1, 0])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


PNG = png()


def make_report(text="plain", **changes):
    """A report in which every text that can be given holds `text`."""
    return Report(
        **{
            "title": text,
            "facts": {f"run {text}": text, "files": [text, 2], "energy": 1.23456},
            "tables": (
                Table(
                    "one",
                    text,
                    ("face", f"MAE {text}"),
                    (("inner", 1.5), ("us", None)),
                    f"note {text}",
                ),
                Table("two", "second", ("a", "b", "c"), (("x", "1.2 ± 0.1", text),)),
            ),
            "metrics": {"energy_bias": 1.25e-5, "mae_inner_photons": float("nan"), text: 3},
            "figures": (Picture(text, PNG, f"as {text}", (f"figures/{text}.pdf", "a.npz")),),
            "config": {"seed": 1, "model": {text: text, "list": [text, 1.5], "flag": True}},
            "environment": {"git": text, "record": {"events": {text: None}}},
            "warnings": (text, "second"),
            "files": {f"{text}.json": text},
        }
        | changes
    )


class Page(html.parser.HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.attributes, self.words = [], [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, *names):
        return [value for _, name, value in self.attributes if name in names]


def test_the_page_is_whole_and_self_contained():
    text = to_html(make_report())
    page = Page(text)
    assert page.open == [], "every tag is closed"
    assert text.isascii()
    targets = page.all("href")
    assert all(target.startswith(("#", "./")) for target in targets)
    assert {t[1:] for t in targets if t[0] == "#"} <= set(page.all("id")), "no link leads nowhere"
    assert {"./figures/plain.pdf", "./a.npz", "./plain.json"} <= set(targets)
    assert all(address.startswith("data:image/png;base64,") for address in page.all("src"))
    assert not re.search(r"@import|url\(|https?:", text)
    wanted = {"Results", "Metrics", "Figures", "Configuration", "Environment", "Files"}
    assert wanted <= set(page.words["a"]), "all in the table of contents"
    assert wanted == set(page.words["h2"])


def test_the_page_allows_nothing_but_its_own_look():
    page = Page(to_html(make_report()))
    (style,) = page.words["style"]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [content for content in page.all("content") if "default-src" in content]
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "script" not in policy
    assert "script" not in page.tags
    assert not page.all("style"), "which the policy would not let through"


def test_everything_is_escaped():
    """Whatever texts hold, the page has the tags that it has with tame ones."""
    page, tame = Page(to_html(make_report(EVIL))), Page(to_html(make_report("a `b`")))
    assert page.tags == tame.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert [n for _, n, _ in page.attributes] == [n for _, n, _ in tame.attributes]
    shown = "".join(word for words in page.words.values() for word in words)
    assert "<script>alert(1)</script>'\"&" in shown, "as it is"


def test_names_of_files_are_no_addresses():
    names = ("javascript:alert(1)", "//host/x", "http://host", "a b#c?d.pdf", "é.pdf")
    page = Page(to_html(make_report(files=dict.fromkeys(names, ""))))
    assert [address for address in page.all("href") if address[0] != "#"][2:] == [
        "./javascript%3Aalert%281%29",
        ".///host/x",
        "./http%3A//host",
        "./a%20b%23c%3Fd.pdf",
        "./%C3%A9.pdf",
    ]


def test_control_characters_and_secrets_are_hidden():
    uri = "http://me:sesame@host/x"
    secrets = {"api_token": "sesame", "uri": uri, "deep": [{"password": "sesame"}]}
    for text in (f"see {uri}", "--api_key=sesame", "\x1b[2Ja\nb"):
        report = make_report(
            text, config={"log": secrets}, environment=secrets, figures=(), files={}
        )
        html_text = to_html(report)
        assert "sesame" not in html_text
        assert "\x1b" not in html_text
        assert "***" in html_text
    assert "sesame" not in to_html(make_report(facts={"password": "sesame", "uris": [uri]}))


def test_figures_are_inside():
    other = png(5, 4)
    figures = [Picture("one", PNG), Picture("two", other, "wide")]
    page = Page(to_html(make_report(figures=figures)))
    found = [base64.b64decode(src.partition(",")[2], validate=True) for src in page.all("src")]
    assert found == [PNG, other]
    assert page.all("width") == ["300", "500"], "a hundred pixels per inch"
    assert page.all("height") == ["200", "400"]
    assert [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")] == [
        "one",
        "two",
    ]


@pytest.mark.parametrize("content", [b"", b"%PDF-1.4", PNG[:20]])
def test_a_figure_that_is_none_ends_no_report(content):
    page = Page(to_html(make_report(figures=[Picture("lost", content, "disk full")])))
    assert "img" not in page.tags
    assert "This figure could not be drawn." in page.words["p"]
    assert "disk full" in page.words["figcaption"]


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("one/a.html", "two/b.html"):
        write_report(tmp_path / name, make_report(EVIL))
    assert (tmp_path / "one/a.html").read_bytes() == (tmp_path / "two/b.html").read_bytes()
    assert (tmp_path / "one/a.html").read_text() == to_html(make_report(EVIL))


def test_a_full_disk_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, make_report("old"))
    old = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        write_report(path, make_report("new"))
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="file"):
        write_report(tmp_path / "file" / "report.html", make_report())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (6000, "6000"),
        (12345678, "12345678"),
        (-3.0, "-3"),
        (0.5, "0.5000"),
        (1.23456, "1.235"),
        (-0.0123456, "-0.01235"),
        (99.999, "100.0"),
        (999.96, "1000"),
        (12345.6, "12346"),
        (1.25e-5, "1.250e-05"),
        (3.2e7, "3.200e+07"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert number_text(value) == text


def test_cells_stand_where_they_belong():
    rows = [
        ("u", 0.25, "1.2 ± 0.1", np.float32(0.5), np.int64(7), "< 3"),
        ("v", float("nan"), "", None, 8, "-1 %"),
    ]
    table = Table("one", "t", ("axis", "number", "text", "numpy", "count", "limit"), rows)
    page = Page(to_html(Report("t", {}, tables=[table])))
    assert page.all("class").count("number") == 3 * 5, "all but the first column"
    cells = page.words["td"] + page.words["span"]
    assert {"0.2500", "1.2 ± 0.1", "0.5000", "7", "8", "< 3", "nan", "u"} <= set(cells)


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(ShapeError, match="2 cells"):
        to_html(Report("t", {}, tables=[Table("one", "bad", ("a", "b", "c"), [(1, 2)])]))


def test_metrics_have_unit_and_definition():
    values = {"energy_bias": 0.25, "mae_inner_photons": 1.5, "no_such_metric": 2.5}
    report = Report("t", {}, metrics=values)
    page = Page(to_html(report))
    cells = page.words["td"]
    assert {"0.2500", "GeV", "1.500", "photons", "2.500"} <= set(cells)
    for name in ("energy_bias", "mae_inner_photons"):
        assert report.describe(name).text.split("`")[0].strip() in " ".join(cells)
    assert page.words["code"] == list(values)
    assert page.words["summary"][-1] == "Others"


def test_values_of_a_config_are_not_rounded():
    config = {"optim": {"lr": 0.000123456789, "betas": [0.9, 0.95]}, "seed": 12345678}
    page = Page(to_html(make_report(config=config)))
    assert {"0.000123456789", "[0.9, 0.95]", "12345678"} <= set(page.words["td"])


def test_an_empty_report_is_a_page():
    page = Page(to_html(Report("nothing", {})))
    assert page.open == []
    assert page.words["h1"] == ["nothing"]
    assert "nav" not in page.tags
    assert "section" not in page.tags
