"""What the page of scans adds to the look of every report."""

STYLESHEET = """
:root { --t0: #0f6b5f; --t1: #c2571a; --t2: #5a4fb0; --t3: #a3186b; --t4: #6b6f12; --t5: #1d5fa8 }
@media (prefers-color-scheme: dark) { :root { --t0: #5fcab8; --t1: #f2a06a; --t2: #aaa2f0; --t3: #f087c2;
  --t4: #cfd06a; --t5: #82b8f2 } }
.t0 { color: var(--t0) } .t1 { color: var(--t1) } .t2 { color: var(--t2) } .t3 { color: var(--t3) }
.t4 { color: var(--t4) } .t5 { color: var(--t5) }
svg polyline.curve { stroke: currentColor; stroke-width: 2 }
svg .curve.t1 { stroke-dasharray: 7 3 } svg .curve.t2 { stroke-dasharray: 2 3.4 }
svg .curve.t3 { stroke-dasharray: 9 3 2 3 } svg .curve.t4 { stroke-dasharray: 4 2 }
svg .curve.t5 { stroke-dasharray: 12 3 }
svg .spread { fill: currentColor; opacity: .13 }
svg circle.point { fill: var(--paper); stroke: currentColor; stroke-width: 2.4 }
svg .whisker { stroke: var(--t0); stroke-width: 1.4; opacity: .6 }
.keyline { display: inline-block; width: 2.2em; height: .7em; margin-right: .45em; vertical-align: -.02em }
.warning { background: var(--warn-soft); color: var(--warn); border-radius: 8px; padding: .6rem .9rem;
  font-size: .95rem; margin: 0 0 1rem; max-width: none }
.stamp { display: inline-block; border: 2px solid var(--warn); color: var(--warn); border-radius: 6px;
  padding: .15rem .7rem; font-weight: 650; letter-spacing: .01em; margin: 0 0 .9rem }
.verdicts { margin: 1.4rem 0 0; padding: 1.2rem 1.5rem; background: var(--soft); border-radius: 14px;
  list-style: none }
.verdicts li { margin: .35rem 0; max-width: 62rem } .verdicts .open, .verdicts .unknown { color: var(--warn) }
.verdicts .worse { color: var(--loss) }
td .interval { display: block }
td small { display: block; color: var(--muted) }
.words th:nth-child(2), .words3 th:nth-child(2), .words3 th:nth-child(3) { text-align: left }
.matrices { display: flex; flex-wrap: wrap; gap: 1.6rem 3rem } .matrices > div { max-width: 100% }
.divider { border-top: 3px solid var(--muted) } .divider h2 { font-size: 1.55rem }
.squares > div { display: contents }
.duos { display: grid; gap: 1.6rem 2.4rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)) }
.duos > div { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem 1.2rem }
.stack > div + div { margin-top: 1.6rem } td.left, th.left { text-align: left } td.wrap { white-space: normal }
h3.part { margin-top: 1.8rem }
.plates { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 14px; margin: .6rem 0 0 }
.plates img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; background: #000; border-radius: 6px }
.plates figcaption { font-size: .78rem; line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere }
.plates small { color: var(--muted); display: block; font-family: ui-monospace, Menlo, Consolas, monospace }
.squares { display: grid; gap: 1.6rem 1.8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)) }
.squares figcaption, .duos figcaption { font-size: .85rem; color: var(--muted); margin-top: .3rem;
  overflow-wrap: anywhere }
.squares svg, .duos svg { max-width: 380px }
h2, h3, th, li { overflow-wrap: anywhere }
@media (max-width: 560px) { .duos > div { grid-template-columns: 1fr } }
@media print { :root { --t0: #0f6b5f; --t1: #b04c12; --t2: #4a409c; --t3: #8f125d; --t4: #5a5e0c; --t5: #174f8c }
  .squares { grid-template-columns: repeat(3, 1fr); gap: .6rem }
  .duos { grid-template-columns: 1fr 1fr; gap: .6rem }
  .plates { grid-template-columns: repeat(6, 1fr) }
  .warning, .stamp, .verdicts { break-inside: avoid } }
"""
"""Goes after ``geomed.evaluation.stylesheet``; nothing in it is fetched."""
