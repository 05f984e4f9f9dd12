"""The importer of hand-kept registries: what people write, also where an editor mangled it."""

import json
from pathlib import Path

import pytest

from xec_jax import runs as command
from xec_jax.errors import ConfigError, DataError
from xec_jax.registry.claims import read_claims, repair

REGISTRY = """\
# Our trainings

## Muon Counting (MC) Regression

**Goal**: how many muons are in a bundle
**Baseline**: 12.5 %

### Training Attempts (March 2025)

#### 1. Deep sets - first try - ❌ FAILED
- **Job ID**: 4455661 (8GB), 4455662 (24GB)
- **Config**: `json/muons/deep_sets.json`
- **Architecture**:
  - encoder: three layers
  - sum → two layers
- **Hyperparameters**: `lr=1e-3`, dropout=0.1
- **Loss**: Huber
- **Result**:
  - 8GB: Out of memory
  - 3.25° mean zenith error, 17% wrong counts
  - Best val_losses: 0.5012 to 0.6034 (trials 1-9)
- **Rationale**: sets have no order
- **Analysis**: too few
  events of high multiplicity
- **Status**: Completed, poor performance

#### 2. Flow (v2) - ⏳ RUNNING
- **Job ID**: 4455700
- **Status**: Running (2h)
- **State**: not a state of ours
- **Kind**: of a flow

#### 3. Flow (v3) - ⏳ IDLE
- **Status**: waiting for a GPU

#### 4. Flow (v4) - 🔄

### Key Insights

1. **Memory**: it is short
- **Result**: 99.9° no result of attempt 4

---

## Tagging

### Training Attempts

#### 1. Baseline
- **Status**: Completed
- **Result**: accuracy: 0.913

#### 2. X-plane - wide
- **Note**: nothing known

## Legend
- ✅ Completed
"""


def mangled(text, encoding="mac_roman"):
    """The text as an editor shows it that takes UTF-8 for something else."""
    return text.encode().decode(encoding)


@pytest.fixture(params=["intact", "mangled", "both"])
def rows(request, tmp_path):
    """The registry as written, mangled, and with mangled lines among intact ones."""
    text = REGISTRY
    if request.param == "mangled":
        text = mangled(text)
        assert "❌" not in text
    elif request.param == "both":
        lines = text.splitlines(keepends=True)
        text = "".join(mangled(line) if k % 2 else line for k, line in enumerate(lines))
    path = tmp_path / "registry.md"
    path.write_text(text, encoding="utf-8")
    return read_claims(path)


def test_entries_and_their_states(rows):
    assert [(row["task"][:4], row["attempt"], row["title"], row["state"]) for row in rows] == [
        ("Muon", 1, "Deep sets - first try", "failed"),
        ("Muon", 2, "Flow (v2)", "running"),
        ("Muon", 3, "Flow (v3)", "registered"),
        ("Muon", 4, "Flow (v4)", "registered"),
        ("Tagg", 1, "Baseline", "done"),
        ("Tagg", 2, "X-plane - wide", "unknown"),
    ]
    assert all(row["kind"] == "claim" for row in rows)


def test_fields_of_an_entry(rows):
    first = rows[0]
    assert first["task"] == "Muon Counting (MC) Regression"
    assert first["period"] == "March 2025"
    assert first["section"] == {"goal": "how many muons are in a bundle", "baseline": "12.5 %"}
    assert first["jobs"] == ["4455661", "4455662"]
    assert first["config"] == "json/muons/deep_sets.json"
    assert first["architecture"] == "encoder: three layers; sum → two layers"
    assert first["hyperparameters"] == "lr=1e-3, dropout=0.1"
    assert first["rationale"] == "sets have no order"
    assert first["analysis"] == "too few; events of high multiplicity"
    assert first["figures"] == [
        {"name": "mean zenith error", "value": 3.25, "unit": "°"},
        {"name": "wrong counts", "value": 17.0, "unit": "%"},
        {"name": "Best val_losses", "value": 0.5012, "high": 0.6034, "unit": ""},
    ]
    assert REGISTRY.splitlines()[first["line"] - 1].startswith("#### 1. Deep sets")
    assert rows[3]["figures"] == [], "what follows the next heading belongs to nobody"
    assert rows[4]["figures"] == [{"name": "accuracy", "value": 0.913, "unit": ""}]
    assert rows[4]["period"] == ""


@pytest.mark.parametrize(
    "text", ["❌ ⏳ 💤 🔄 ✅", "74° ± 3 \u00d7 √2 → π", "Ünïcödé, naïve \u2014 “quoted”"]
)
def test_repair(text):
    assert repair(text) == text, "what is intact stays"
    assert repair(mangled(text)) == text
    assert repair(mangled(text) + " " + text) == f"{text} {text}"


def test_repair_of_another_code_page():
    assert repair(mangled("74° ✅", "cp1252")) == "74° ✅"


def test_import_and_list(tmp_path, capsys):
    (tmp_path / "registry.md").write_text(mangled(REGISTRY), encoding="utf-8")
    output = tmp_path / "runs" / "claims.jsonl"
    words = ["import", str(tmp_path / "registry.md"), "--output", str(output)]
    assert command.main(words) == 0
    with pytest.raises(ConfigError, match="exists"):
        command.main(words)
    assert command.main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert command.main([str(tmp_path), "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 6
    assert {row["kind"] for row in listed} == {"claim"}
    assert {row["best"] for row in listed} == {None}, "nothing here was measured"
    assert "3.25° mean zenith error" in listed[0]["note"]
    assert command.main([str(tmp_path)]) == 0
    assert "claim: failed" in capsys.readouterr().out
    assert command.main([str(tmp_path), "--best", "3", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_damaged_claims_disturb_nobody(tmp_path, capsys):
    rows = [{"kind": "claim", "jobs": 5, "state": [], "title": {}}, {"kind": "claim"}, {}, 3]
    lines = [*map(json.dumps, rows), '{"kind": "cl']
    (tmp_path / "claims.jsonl").write_text("\n".join(lines))
    for form in ("text", "csv", "html"):
        assert command.main([str(tmp_path), "--format", form]) == 0
    assert capsys.readouterr().out.count("claim: unknown") >= 4


def test_what_cannot_be_imported(tmp_path):
    path = tmp_path / "registry.md"
    for content in (b"# nothing\n- **Job ID**: 1", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"registry\.md"):
            read_claims(path)
    with pytest.raises(ConfigError, match="other"):
        command.main(["import", str(path), "--output", str(tmp_path / "other.jsonl")])


SEEDS = sorted((Path(__file__).parents[2] / "shared" / "seeds").glob("004*"))


@pytest.mark.skipif(not SEEDS, reason="needs a registry that lies beside the repository")
def test_a_real_registry():
    rows = read_claims(SEEDS[0])
    states = [row["state"] for row in rows]
    assert len(rows) == 9
    assert states.count("failed") == 2
    assert states.count("running") == states.count("registered") == 3
    assert len({row["task"] for row in rows}) == 3
    first = rows[0]
    assert first["figures"] == [{"name": "mean angular error", "value": 74.23, "unit": "°"}]
    assert first["jobs"] == ["10626061"]
    assert "128\u00d716" in first["section"]["dataset"]
