"""How the HTML report looks, and the few lines of script that filter its samples; without them it reads as well."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --card: #ffffff; --ink: #1c2024; --soft: #5a626b; --faint: #8b939b;
  --line: #dfe3e6; --one: #1f5f9f; --two: #b85a1a; --three: #1d7a58; --four: #94397b; --good: #1d7a4a; --bad: #b3261e;
  --open: #6b6f76; --good-bg: #e5f4ea; --bad-bg: #fbe9e7; --open-bg: #eef0f2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e6e9ec; --soft: #a7b0b8;
  --faint: #858e97; --line: #333a41; --one: #6fb1f0; --two: #f0a060; --three: #5fc89c; --four: #dd8cc6; --good: #73d29b;
  --bad: #ff9488; --open: #b0b7be; --good-bg: #16321f; --bad-bg: #3d1b18; --open-bg: #282d32; } }
* { box-sizing: border-box; }
body { margin: 0; overflow-wrap: break-word;
  background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: .5rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .35rem; }
h3 { font-size: 1rem; margin: 0 0 .15rem; }
p { margin: .35rem 0 .8rem; max-width: 48rem; }
.soft, small { color: var(--soft); }
small { font-size: .84rem; }
.verdict { font-size: 1.15rem; line-height: 1.5; border-left: 4px solid var(--one); padding: .2rem 0 .2rem 1rem;
  margin: 1.2rem 0; max-width: none; }
.warning { overflow-wrap: anywhere;
  border-left: 4px solid var(--bad); background: var(--bad-bg); padding: .6rem 1rem; margin: 1rem 0;
  max-width: none; }
.questions { list-style: none; padding: 0; margin: 1rem 0; display: grid; gap: .6rem; }
.questions li { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem;
  display: grid; grid-template-columns: 6.8rem 1fr; gap: .2rem 1rem; align-items: start; }
.questions p { margin: 0; max-width: none; color: var(--soft); }
.badge { display: inline-block; border-radius: 99px; padding: .1rem .8rem; font-weight: 600; font-size: .9rem;
  text-align: center; white-space: nowrap; color: var(--open); background: var(--open-bg); }
.good { color: var(--good); } .bad { color: var(--bad); }
.badge.good { background: var(--good-bg); } .badge.bad { background: var(--bad-bg); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .42rem .8rem .42rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem; }
tbody th { font-weight: 500; }
tbody th small { display: block; font-weight: 400; }
td { font-variant-numeric: tabular-nums; }
td small { display: block; white-space: nowrap; }
tr.group th { padding-top: 1.1rem; color: var(--one); font-weight: 600; border-bottom-color: var(--faint); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  margin: 1rem 0; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption p { margin: 0 0 .5rem; font-size: .88rem; color: var(--soft); }
.controls { display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; }
.controls[hidden] { display: none; }
.controls input, .controls select { font: inherit; color: inherit; background: var(--card); padding: .35rem .6rem;
  border: 1px solid var(--faint); border-radius: 6px; max-width: 100%; }
.sample { border: 1px solid var(--line); border-radius: 8px; background: var(--card); padding: .8rem 1rem;
  margin: 0 0 .8rem; break-inside: avoid; }
.sample[hidden] { display: none; }
.asked { white-space: pre-wrap; overflow-wrap: anywhere; font-weight: 600; margin: 0; max-width: none; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .4rem 1.4rem;
  margin-top: .5rem; }
.answers p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .94rem; }
details { margin: .9rem 0; } summary { cursor: pointer; color: var(--one); }
code { font-size: .88em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .25rem 1.2rem; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  main { padding: .8rem .9rem 3rem; }
  .questions li { grid-template-columns: 1fr; }
  .questions .badge { justify-self: start; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; }
  table.stacks thead { display: none; }
  table.stacks tr, table.stacks th { display: block; }
  table.stacks td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0;
    text-align: right; }
  table.stacks td::before { content: attr(data-label); color: var(--soft); text-align: left; }
  table.stacks td:empty { display: none; }
  table.stacks tbody th { border: 0; padding-bottom: .1rem; }
  table.stacks tr { padding: .45rem 0; border-bottom: 1px solid var(--line); }
}
@media print {
  :root { --paper: #fff; --card: #fff; }
  body { font-size: 11px; } main { max-width: none; padding: 0; }
  .controls { display: none; } figure, tr, .questions li { break-inside: avoid; }
}
"""

SCRIPT = """
const controls = document.querySelector('.controls');
if (controls) {
  const samples = [...document.querySelectorAll('.sample')], count = controls.querySelector('output');
  const show = () => {
    const words = controls.querySelector('input').value.toLowerCase();
    const wanted = [...controls.querySelectorAll('select')].map(choice => [choice.name, choice.value]);
    let shown = 0;
    for (const sample of samples) {
      sample.hidden = !(sample.textContent.toLowerCase().includes(words)
        && wanted.every(([name, value]) => !value || sample.dataset[name] === value));
      shown += !sample.hidden;
    }
    count.textContent = shown + ' of ' + samples.length + ' shown';
  };
  controls.addEventListener('input', show);
  controls.hidden = false;
  show();
}
"""
