// Experiments' results and reports, read anew each time that one looks. Whoever wrote
// them may have written anything: texts are set as text, and figures are images, in
// which nothing runs and nothing is fetched.
import { el, table, size, link } from './parts.js';
import { get, request } from './api.js';
import { page } from './views.js';

const shownMost = 500; // of a list's parts
const reportPath = (name, section) => `/experiments/${encodeURIComponent(name)}${section === undefined ? '' : `/${section}`}`;
const callPath = (name) => `/v1/experiments/${encodeURIComponent(name)}`;

// read shows what is made of an answer, or why there is none.
function read(title, from, make) {
  const said = el('p', { role: 'status' }, 'reading'), body = el('div');
  get(from).then((got) => {
    body.append(...make(got));
    said.textContent = '';
  }).catch((e) => {
    said.className = 'bad';
    said.textContent = e.message + (e.hint ? ` (${e.hint})` : '');
  });
  return page(title, said, body);
}

const facts = (list) => el('dl', { class: 'tiles facts' }, ...list.filter(([, v]) => v).map(([k, v]) => el('div', {}, el('dt', {}, k), el('dd', {}, v))));
const sentences = (list, kind) => (list.length ? [el('ul', { class: kind }, ...list.slice(0, shownMost).map((s) => el('li', {}, s)))] : []);
const text = (s) => el('td', { class: s.length > 24 ? 'text' : '' }, s);

export function experiments() {
  return read('Experiments', `/v1/experiments?limit=${shownMost}`, (all) => [
    table('Results', ['Name', 'Report of', 'Samples'], all.map((e) => [
      e.reported ? link(reportPath(e.name), e.name) : e.name,
      e.reported ? new Date(e.changed).toLocaleString() : text('none yet: skep experiment report makes it'), size(e.samples_bytes)]),
    'no results: what skep experiment writes below results_dir (skep config says where that is) is here')]);
}

export function oneExperiment(name) {
  return read(name, `${callPath(name)}/report`, (r) => [
    el('p', {}, `${r.title}. `, el('span', { class: 'dim' }, [r.emulated && 'Guest code was emulated.', r.quick && 'A quick run.'].filter(Boolean).join(' '))),
    facts([['Measured', new Date(r.time).toLocaleString()], ['skep', r.skep], ['VMM', r.vmm], ['Machine', `${r.cpu}, ${r.cpus} processors, ${size(r.memory_mib * 2 ** 20)}`], ['Host', `Linux ${r.kernel}, ${r.disk}`], ['Samples', String(r.samples)]]),
    el('h2', {}, 'What came out'),
    el('ul', { class: 'parts' }, ...r.sections.slice(0, shownMost).map((s, i) => el('li', {},
      link(reportPath(name, i + 1), `${s.figure}: ${s.title || s.name}`), ' ', s.findings.slice(0, 2).join(' ')))),
    ...(r.reasons.length ? [el('h2', {}, 'Why these figures differ from the paper’s')] : []), ...sentences(r.reasons),
  ]);
}

// oneSection is a part of a report, by its number from 1.
export function oneSection(name, number) {
  return read(name, `${callPath(name)}/report`, (r) => {
    const at = Number(number) - 1, s = r.sections[at];
    if (!s) return [el('p', {}, `The report has no part ${number}.`)];
    const part = (n, words) => (r.sections[n - 1] ? [link(reportPath(name, n), words)] : []);
    return [
      el('nav', { class: 'within', 'aria-label': 'Parts of the report' }, link(reportPath(name), 'All of the report'), ...part(at, 'Before'), ...part(at + 2, 'Next')),
      el('h2', {}, `${s.figure}: ${s.title}`),
      el('p', { class: 'dim' }, `${s.question} ${s.samples} samples, ${s.runs} ${s.runs === 1 ? 'run' : 'runs'}.`),
      ...sentences(s.findings), ...s.figures.slice(0, shownMost).map((f) => figure(name, f)), ...sentences(s.caveats, 'dim'),
      ...s.tables.slice(0, shownMost).flatMap((t) => [el('h3', {}, `Table ${t.name}`), table(`Table ${t.name}`, t.head, t.rows.slice(0, shownMost).map((row) => row.map(text))),
        ...(t.rows.length > shownMost ? [el('p', { class: 'dim' }, `the first ${shownMost} rows of ${t.rows.length}`)] : [])]),
    ];
  });
}

function figure(name, f) {
  const img = el('img', { alt: f.title || f.name }), said = el('p', { class: 'dim' }, 'drawing');
  const narrow = matchMedia('(max-width: 640px)').matches;
  (async () => {
    try {
      const drawn = await (await request('GET', `${callPath(name)}/figures/${encodeURIComponent(f.name)}${narrow ? '?narrow=true' : ''}`)).blob();
      const url = new FileReader();
      url.onload = () => { img.src = url.result; said.remove(); };
      img.onerror = () => { img.replaceWith(el('p', { class: 'bad' }, `${f.name} is not a figure`)); };
      url.readAsDataURL(drawn);
    } catch (e) {
      img.remove();
      said.className = 'bad';
      said.textContent = e.message + (e.hint ? ` (${e.hint})` : '');
    }
  })();
  return el('figure', { class: 'card drawn' }, img, said, el('figcaption', {}, f.caption));
}
