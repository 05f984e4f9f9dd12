"""What the page of runs brings along: its look and its one script."""

from xec_jax.plots.page_style import PAGE_STYLE

STYLE = (
    PAGE_STYLE
    + """#runs th { white-space: nowrap; cursor: pointer; background: #fafafa; }
#runs th[data-order="1"]::after { content: " \\25B4"; }
#runs th[data-order="-1"]::after { content: " \\25BE"; }
#runs td { white-space: nowrap; }
#runs td.text { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; max-width: 24rem; }
tr.claim td { color: #777; font-style: italic; }
.state { border-radius: .8rem; padding: .05rem .6rem; background: #eee; white-space: nowrap; }
.done { background: #dcf2e0; }
.running, .registered { background: #dfeaf9; }
.preempted, .interrupted { background: #fbf1d3; }
.failed, .lost { background: #fbe1df; }
.broken { background: #f5e0f2; }
figure svg { width: 100%; max-width: 62rem; height: auto; }
svg.line { vertical-align: middle; margin-right: .4rem; }
"""
)

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
