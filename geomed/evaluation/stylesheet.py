"""The look of a report: one quiet page for screen, phone and print, light and dark."""

STYLESHEET = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1b2421; --muted: #5f6b66; --line: #e2e0d8; --accent: #0f6b5f;
  --soft: #e7f1ee; --warn: #8a4b08; --warn-soft: #fbf0de; --loss: #b3382c }
@media (prefers-color-scheme: dark) { :root {
  --paper: #121615; --card: #191f1d; --ink: #e6eae7; --muted: #9aa6a1; --line: #2c3431; --accent: #5fcab8;
  --soft: #1b2e2a; --warn: #f0bd74; --warn-soft: #33270f; --loss: #f08a7d } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100% }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Cantarell, Arial, sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 56px 28px 40px }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .5rem; font-weight: 650;
  text-wrap: balance }
h2 { font-size: 1.2rem; letter-spacing: -.005em; margin: 0 0 .2rem; font-weight: 650 }
h3 { font-size: .95rem; margin: 0 0 .3rem; font-weight: 600 }
p { margin: 0 0 .8rem; max-width: 46rem; text-wrap: pretty; overflow-wrap: anywhere }
.lead { font-size: 1.06rem; color: var(--muted) }
.said { color: var(--muted); font-size: .9rem; margin-bottom: 1rem }
section { margin-top: 3.2rem; padding-top: 1.6rem; border-top: 1px solid var(--line) }
.simulated { background: var(--warn-soft); color: var(--warn); border-radius: 8px; padding: .6rem .9rem;
  font-size: .93rem;
  margin: 0 0 1.4rem }
.hero { margin: 1.8rem 0 0; padding: 1.6rem 1.8rem; background: var(--soft); border-radius: 14px }
.hero .score { font-size: clamp(2.5rem, 8vw, 4.4rem); line-height: 1.05; letter-spacing: -.035em; font-weight: 680;
  margin: 0;
  max-width: none; font-variant-numeric: tabular-nums; white-space: nowrap }
.score .from { color: var(--muted); font-weight: 450 } .score .to { color: var(--accent) }
.score .arrow { color: var(--muted); font-weight: 300; padding: 0 .12em }
.score small { font-size: .4em; letter-spacing: 0; color: var(--muted); font-weight: 450 }
.hero .what { max-width: none; margin: .5rem 0 0; font-size: 1.08rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1rem 1.6rem;
  margin: 1.5rem 0 0 }
.tiles dt { color: var(--muted); font-size: .82rem } .tiles dd { margin: 0; font-size: 1.18rem; font-weight: 620;
  font-variant-numeric: tabular-nums }
pre { margin: 1.2rem 0 0; padding: .7rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px;
  font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .46rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 550; color: var(--muted) } tbody th { color: var(--ink); font-weight: 500 }
thead th { vertical-align: bottom; font-size: .82rem; border-bottom-color: var(--muted) }
th:first-child { text-align: left; padding-left: .3rem }
.scroll tfoot th { position: sticky; left: 0; background: var(--paper) }
tr.best th, tr.best td { background: var(--soft) } tr.best th, tr.best .key { font-weight: 680; color: var(--accent) }
tr.reference th, tr.reference td { color: var(--muted) }
.scroll tbody th, .scroll thead th:first-child { position: sticky; left: 0; background: var(--paper); z-index: 1 }
.scroll tr.best th { background: var(--soft) }
.tag { font-size: .74rem; color: var(--muted); border: 1px solid var(--line); border-radius: 99px;
  padding: .05rem .5rem; margin-left: .5rem;
  font-weight: 450 }
.interval { color: var(--muted); font-size: .82rem; font-weight: 450 }
tfoot td, tfoot th { border-bottom: 0; font-weight: 620; color: var(--ink) }
th small { display: block; font-weight: 400; color: var(--muted); white-space: normal; max-width: 17rem;
  line-height: 1.35 }
figure { margin: 0 }
figure + .scroll { margin-top: 1.6rem }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font-size: 12px; fill: var(--ink); font-family: inherit }
svg text { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round }
svg .muted { fill: var(--muted); font-size: 11.5px } svg .end { text-anchor: end } svg .middle { text-anchor: middle }
svg .rule { stroke: var(--line); stroke-width: 1 }
svg .level { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 4 }
svg .leader { stroke: var(--muted); stroke-width: .7 }
svg circle.best { fill: var(--accent); stroke: var(--paper); stroke-width: 1.5 }
svg line.best { stroke: var(--accent); stroke-width: 2; opacity: .55 }
svg circle.method { fill: var(--muted); stroke: var(--paper); stroke-width: 1.5 }
svg line.method { stroke: var(--muted); stroke-width: 2; opacity: .4 }
svg circle.reference { fill: var(--paper); stroke: var(--muted); stroke-width: 1.7 }
svg line.reference { stroke: var(--muted); stroke-width: 2; opacity: .4 }
svg text.best { fill: var(--accent); font-weight: 680; font-size: 13px } svg text.reference { fill: var(--muted) }
svg line.gain { stroke: var(--accent); stroke-width: 3; opacity: .45 }
svg line.loss { stroke: var(--loss); stroke-width: 3; opacity: .6 }
svg .curve { fill: none; stroke-width: 2.4; stroke-linejoin: round; stroke-linecap: round }
svg .curve.under { stroke: var(--ink); stroke-width: 3.8; opacity: .38 }
svg .curve.source { stroke: var(--muted); stroke-width: 1.6; stroke-dasharray: 5 4 }
svg .band.source { fill: var(--muted); opacity: .13 }
svg circle.source { fill: var(--muted) }
.change { width: 120px; height: 16px; display: inline-block; vertical-align: middle }
.narrow { display: none }
.maps { display: grid; grid-template-columns: repeat(5, 1fr); gap: 14px }
.maps .frame { position: relative; background: var(--card); border-radius: 6px; overflow: hidden;
  outline: 1px solid var(--line) }
.maps img { display: block; width: 100%; height: auto; image-rendering: pixelated }
.maps figcaption { font-size: .86rem; margin-top: .45rem; line-height: 1.4 }
.maps figcaption small { color: var(--muted); display: block }
.scale { position: absolute; left: 6px; bottom: 6px; font-size: 11px; line-height: 1; color: #fff;
  text-shadow: 0 0 3px #000, 0 0 3px #000; width: 100% }
.scale i { display: block; height: 4px; background: #fff; box-shadow: 0 0 0 1px #0009; margin-top: 4px }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1rem 0 0; padding: 0; list-style: none;
  font-size: .86rem }
.legend + .legend { margin-top: .5rem }
.swatch { display: inline-block; width: .85em; height: .85em; border-radius: 3px; margin-right: .45em;
  vertical-align: -.06em;
  box-shadow: inset 0 0 0 1px #0003 }
.dash { display: inline-block; width: 1.9em; border-top: 2px dashed var(--muted); margin-right: .45em;
  vertical-align: .25em }
.solid { border-top: 3px solid var(--ink) }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 3rem 2.6rem; align-items: start }
.matrix { border-collapse: separate; border-spacing: 2px; font-size: .82rem; width: auto }
.matrix th, .matrix td { border: 0; padding: .38rem .4rem }
.matrix thead th { vertical-align: bottom; font-weight: 500; padding: .2rem }
.matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  display: inline-block }
.matrix td { text-align: center; min-width: 2.7rem; border-radius: 4px; color: var(--ink) }
.matrix td.hot { color: #fff }
.matrix td.none { color: var(--muted) } .matrix tbody th { padding-right: .6rem; text-align: right }
.matrix thead th, .matrix thead th:first-child { text-align: center }
.matrix .count { display: block; font-size: .7rem; opacity: .75; line-height: 1.1 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap: 1.6rem 1.8rem }
.bars { width: 34%; min-width: 9rem; text-align: left }
.bars i { display: block; height: 8px; border-radius: 2px; margin: 2px 0; min-width: 1px }
.bars i.truth { background: var(--muted); opacity: .45 }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.4rem; margin: 0; font-size: .92rem }
.facts dt { color: var(--muted) } .facts dd { margin: 0; overflow-wrap: anywhere }
.notes { margin: .4rem 0 0; padding-left: 1.1rem; max-width: 46rem }
.notes li { margin-bottom: .45rem; overflow-wrap: anywhere }
@media (max-width: 900px) { .pair { grid-template-columns: minmax(0, 1fr) }
.maps { grid-template-columns: repeat(2, 1fr) }
  .maps figure:first-child { grid-column: 1 / -1 } }
@media (max-width: 620px) { main { padding: 28px 16px 32px } .wide { display: none } .narrow { display: block }
h1 { font-size: 1.5rem }
  .hero { padding: 1.2rem 1.1rem } section { margin-top: 2.2rem } .tiles { grid-template-columns: 1fr 1fr }
th, td { padding: .42rem .5rem }
  .tag { display: block; width: max-content; margin: .15rem 0 0 } th small { max-width: 9rem }
  .matrix .count, .counted { display: none } .matrix th, .matrix td { padding: .4rem .15rem }
  .matrix td { min-width: 1.9rem }
  .matrix tbody th { white-space: normal; padding-right: .4rem; min-width: 4.4rem }
  .facts { grid-template-columns: 1fr; gap: 0 } .facts dd { margin-bottom: .5rem } }
@media print { :root { --paper: #fff; --card: #fff; --ink: #111; --muted: #555; --line: #d5d5d0; --accent: #0f6b5f;
  --soft: #eef5f3;
    --warn: #7a4207; --warn-soft: #fbf0de; --loss: #b3382c }
  body { font-size: 10pt } main { max-width: none; padding: 0 } section { margin-top: 1.4rem; padding-top: .9rem }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact } figure, tr, .hero { break-inside: avoid }
h2 { break-after: avoid }
  .maps { grid-template-columns: repeat(5, 1fr) } .maps figure:first-child { grid-column: auto }
  .scroll { overflow: visible } table { font-size: 8.5pt } th, td { padding: .25rem .4rem }
.narrow { display: none } .wide { display: block }
   }
"""
"""Nothing in it is fetched: system fonts, no pictures, no imports."""
