"""What the report of an evaluation brings along besides the common look of pages."""

from xec_jax.plots.page_style import PAGE_STYLE

STYLE = (
    PAGE_STYLE
    + """html { color-scheme: light; scroll-behavior: smooth; }
body { max-width: 68rem; margin: 0 auto; padding: 2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 2px solid #0072B2; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
a { color: #005a8e; }
code { font-size: .92em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr));
  gap: .9rem 1.6rem; margin: 1.2rem 0; }
dt { color: #6b6b6b; font-size: .85rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.warnings { background: #fbf1d3; border-left: .3rem solid #E69F00; padding: .7rem 1rem; }
.warnings ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.warnings li { overflow-wrap: anywhere; }
nav { margin: 1.2rem 0; background: #f5f7f9; border-radius: .4rem; padding: .9rem 1.2rem; }
nav > ul { columns: 15rem; column-gap: 2rem; margin: 0; padding: 0; list-style: none; }
nav ul ul { margin: 0 0 .6rem; padding-left: 1rem; list-style: none; }
nav > ul > li > a { font-weight: 600; }
nav li li { break-inside: avoid; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
thead th { border-bottom: 2px solid #c9cdd2; vertical-align: bottom; }
tbody tr:hover { background: #f5f7f9; }
table.results td { white-space: nowrap; }
table.results td.prose { white-space: normal; min-width: 12rem; }
table.metrics, table.pairs { width: 100%; }
table.metrics td:first-child { width: 17rem; }
table.metrics .number { width: 6rem; white-space: nowrap; }
table.metrics td:nth-child(3) { width: 5rem; }
table.metrics td:nth-child(4) { color: #555; min-width: 14rem; overflow-wrap: normal; }
table.pairs td { padding: .15rem .6rem; }
table.pairs td:first-child { width: 35%; }
.missing { color: #6b6b6b; }
p.note { color: #555; margin: .5rem 0 0; max-width: 50rem; }
summary { font-weight: 600; padding: .25rem 0; }
summary span { color: #6b6b6b; font-weight: normal; margin-left: .4rem; }
figure { margin: .8rem 0 2.2rem; }
figure h3 { margin: 0 0 .5rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: #555; margin-top: .5rem; max-width: 50rem; }
figcaption .files { white-space: nowrap; }
@media (max-width: 40rem) {
  body { padding: 1rem; }
  th, td { padding: .25rem .4rem; }
  dl { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .7rem 1rem; }
  table.metrics td:first-child, table.pairs td:first-child { width: auto; min-width: 9rem; }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 9.5pt; max-width: none; padding: 0; }
  .wide { overflow: visible; }
  .wide td, .wide th { white-space: normal; }
  h2, h3, summary { break-after: avoid; }
  figure, tr, .warnings, dl > div { break-inside: avoid; }
  figure img { max-height: 235mm; width: auto; }
  nav { background: none; padding: 0; }
  a { color: inherit; }
  table.pairs td { padding: .05rem .4rem; font-size: 8pt; }
  thead { display: table-header-group; }
  details::details-content { content-visibility: visible; }
}
"""
)
