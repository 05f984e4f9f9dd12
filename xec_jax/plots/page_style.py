"""The look that all pages share; they are for browsers what `style` is for figures."""

PAGE_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 2rem; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.facts { color: #777; margin: .2rem 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
.number { text-align: right; }
details { margin: .4rem 0; }
details td { overflow-wrap: anywhere; }
summary { cursor: pointer; }
pre { background: #f7f7f7; padding: .6rem; overflow-x: auto; }
figure { margin: .5rem 0; }
"""
