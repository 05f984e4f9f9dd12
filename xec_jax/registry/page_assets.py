"""What the page of runs brings along: its look and its one script."""

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 2rem; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.facts { color: #777; margin: .2rem 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
#runs th { white-space: nowrap; cursor: pointer; background: #fafafa; }
#runs th[data-order="1"]::after { content: " \\25B4"; }
#runs th[data-order="-1"]::after { content: " \\25BE"; }
#runs td { white-space: nowrap; }
#runs .number { text-align: right; }
#runs td.text { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; max-width: 24rem; }
details td { overflow-wrap: anywhere; }
tr.claim td { color: #777; font-style: italic; }
.state { border-radius: .8rem; padding: .05rem .6rem; background: #eee; white-space: nowrap; }
.done { background: #dcf2e0; }
.running, .registered { background: #dfeaf9; }
.preempted, .interrupted { background: #fbf1d3; }
.failed, .lost { background: #fbe1df; }
.broken { background: #f5e0f2; }
details { margin: .4rem 0; }
summary { cursor: pointer; }
pre { background: #f7f7f7; padding: .6rem; overflow-x: auto; }
figure { margin: .5rem 0; }
figure svg { width: 100%; max-width: 62rem; height: auto; }
svg.line { vertical-align: middle; margin-right: .4rem; }
"""

SCRIPT = """
const body = document.querySelector("#runs tbody");
const heads = document.querySelectorAll("#runs th");
heads.forEach((head, column) => head.addEventListener("click", () => {
  const order = head.dataset.order === "1" ? -1 : 1;
  heads.forEach((other) => delete other.dataset.order);
  head.dataset.order = order;
  const key = (row) => row.cells[column].dataset.key;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");  // always last
    const difference = a - b;
    const texts = () => a.localeCompare(b, "en", { numeric: true });
    return order * (isNaN(difference) ? texts() : difference);
  };
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
}));
const unfold = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target) { target.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", unfold);
unfold();
"""
