// The views: each returns an element for what is known now. Those with forms build
// them once and renew the rest.
import { state, resident, now, PHASES, STATES } from './state.js';
import { el, table, size, ms, clock, link, functionLink, chart, waterfall, span, legend, phasesOf, field } from './parts.js';
import { get, request, change, lines, beginning } from './api.js';

const rowsShown = 200, timelineMost = 5 * 60 * 1000, answerMost = 100_000, logLines = 1000, logLineMost = 4096;

// live is an element whose content draw makes anew at each change, unless somebody
// is at something in it or nothing is different.
function live(draw) {
  const e = el('div');
  let before = '';
  e.redraw = () => {
    const next = draw();
    const html = next.map((n) => n.outerHTML ?? n.textContent).join('');
    if (html === before) return;
    before = html;
    const focused = e.contains(document.activeElement) && document.activeElement.getAttribute('href');
    const at = [...e.querySelectorAll('.scroll')].map((s) => s.scrollLeft);
    e.replaceChildren(...next);
    [...e.querySelectorAll('.scroll')].forEach((s, i) => { s.scrollLeft = at[i] ?? 0; });
    if (focused) e.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  };
  e.redraw();
  return e;
}

export function page(title, ...parts) {
  const view = el('div', {}, el('h1', { tabindex: '-1' }, title), ...parts);
  view.redraw = () => parts.forEach((p) => p.redraw?.());
  return view;
}

// rest is a button for the rest of so many, of which the first are shown.
const rest = (all, shown, show) => (all > shown ? [el('p', {}, el('button', { onclick: show }, `Show all ${all}`))] : []);

const last = (name) => state.samples.at(-1)?.[name] ?? 0;
const percent = (v) => `${Math.round(v * 100)}%`;

function tile(name, value) { return el('div', {}, el('dt', {}, name), el('dd', {}, value)); }

function startRows(only) {
  const all = [...state.starts.values()].reverse().filter((s) => !only || s.function === only);
  const scale = Math.max(1, ...all.map((s) => Object.values(s.phases).reduce((a, b) => a + b, 0)));
  return all.map((s) => {
    const now = state.instances.get(s.id);
    const total = Object.values(s.phases).reduce((a, b) => a + b, 0);
    return [clock(s.began), functionLink(s.function), s.id, el('td', {}, el('span', { class: 'state' }, now?.state ?? 'ended')), ms(total), waterfall(s.phases, scale), el('td', { class: 'text' }, s.reason ?? '')];
  });
}

const startTable = (only) => table('Starts of instances', ['Began', 'Function', 'Instance', 'Now', 'Start ms', 'Phases of the start', 'Why it ended'], startRows(only), 'no instance has started since this page was opened');

// timeline is what instances did over the last minutes, those that began last first.
function timeline(only) {
  const to = now(), shown = [...state.lives.values()].filter((l) => (!only || l.function === only) && (!l.ended || l.ended > to - timelineMost)).reverse().slice(0, 20);
  const from = Math.max(to - timelineMost, Math.min(...shown.map((l) => l.parts[0].since)));
  return table('Instances over time', ['Function', 'Instance', 'Now', `From ${clock(from)} to now`], shown.map((l) => [
    functionLink(l.function), l.id, el('td', {}, el('span', { class: 'state' }, l.ended ? 'ended' : l.parts.at(-1).state)), span(l, from, to)]), 'no instance runs, and none has since this page was opened');
}

function requestTable(list, caption) {
  const shown = list.slice(0, 50);
  const scale = Math.max(1, ...shown.map((r) => r.phases.total_us / 1000));
  return table(caption, ['Time', 'Function', 'Start', 'Status', 'Total ms', 'Phases', 'Faults', 'Error'], shown.map((r) => [
    clock(r.time), functionLink(r.function), r.start || '–',
    el('td', { class: r.status >= 500 || r.failure ? 'bad' : '' }, String(r.status)), ms(r.phases.total_us / 1000), waterfall(phasesOf(r), scale),
    r.memory ? String(r.memory.faults) : '–', el('td', { class: 'text' }, r.failure ? `${r.failure}: ${r.error}` : ''),
  ]), 'no requests yet');
}

export function overview() {
  return page('Overview',
    live(() => {
      const counts = {};
      for (const i of state.instances.values()) counts[i.state] = (counts[i.state] ?? 0) + 1;
      const samples = state.samples;
      return [
        el('dl', { class: 'tiles' },
          tile('Functions', String(state.functions.size)),
          tile('Instances', Object.entries(counts).map(([s, n]) => `${n} ${s}`).join(', ') || 'none'),
          tile('Cold share, last 100', percent(last('cold'))),
          tile('Waiting', String(last('queue'))),
          tile('Memory of instances', size(last('memory'))),
          tile('Snapshots', String(state.snapshots.size))),
        el('div', { class: 'charts' },
          chart('Instances', String(last('instances')), samples.map((s) => s.instances)),
          chart('Cold share', percent(last('cold')), samples.map((s) => s.cold), 1),
          chart('Waiting requests', String(last('queue')), samples.map((s) => s.queue)),
          chart('Memory of instances', size(last('memory')), samples.map((s) => s.memory)),
          chart('Memory of the node in use', `${size(last('used'))} of ${size(state.usage?.memory_bytes)}`, samples.map((s) => s.used), state.usage?.memory_bytes)),
      ];
    }),
    el('h2', {}, 'Starts'), legend(), live(() => [startTable()]),
    el('h2', {}, 'Instances over time'), legend('States', STATES), live(() => [timeline()]),
    el('h2', {}, 'Requests'), live(() => [requestTable(state.requests, 'Newest requests')]));
}

export function requests() {
  let name = '', kind = '';
  const draw = live(() => [requestTable(state.requests.filter((r) => r.function.includes(name) && (!kind || (kind === 'failed' ? r.failure : r.start === kind))), 'Requests')]);
  const change = (e) => { name = e.currentTarget.name.value; kind = e.currentTarget.kind.value; draw.redraw(); };
  return page('Requests',
    el('form', { class: 'inline', oninput: change, onsubmit: (e) => e.preventDefault() },
      field('Function', 'name', { type: 'search' }),
      el('label', {}, 'Which', el('select', { name: 'kind' }, ...['', 'boot', 'restore', 'warm', 'failed'].map((v) => el('option', { value: v }, v || 'all'))))),
    legend(), draw);
}

export function functions() {
  let filter = '', most = rowsShown;
  const list = live(() => {
    const per = new Map();
    for (const i of state.instances.values()) {
      const p = per.get(i.function) ?? {};
      p[i.state] = (p[i.state] ?? 0) + 1;
      per.set(i.function, p);
    }
    const fit = [...state.functions.values()].filter((f) => f.name.includes(filter));
    return [el('p', { class: 'dim' }, `${fit.length} of ${state.functions.size}`),
      table('Functions', ['Name', 'Instances', 'Memory', 'At most', 'Image'], fit.slice(0, most).map((f) => [
        functionLink(f.name), Object.entries(per.get(f.name) ?? {}).map(([s, n]) => `${n} ${s}`).join(', ') || '–',
        `${f.memory_mib ?? 256} MiB`, String(f.max_instances ?? 8), f.image]), 'no functions'),
      ...rest(fit.length, most, () => { most = Infinity; list.redraw(); })];
  });
  const said = el('p', { role: 'status' });
  return page('Functions',
    el('details', {}, el('summary', {}, 'Deploy a function'),
      el('form', { class: 'inline', onsubmit: (e) => deploy(e, said) },
        field('Name', 'name', { required: true, pattern: '[a-z0-9]([a-z0-9\\-]*[a-z0-9])?', maxlength: 63 }),
        field('Image', 'image', { required: true, size: 34, placeholder: 'localhost:5000/shop:v3' }),
        field('Memory, MiB', 'memory', { type: 'number', min: 64, max: 65536, placeholder: 'as it is, or 256' }),
        el('button', {}, 'Deploy')), said),
    el('form', { class: 'inline', onsubmit: (e) => e.preventDefault(), oninput: (e) => { filter = e.target.value; list.redraw(); } }, field('Find', 'filter', { type: 'search' })),
    list);
}

async function attempt(said, doing, f) {
  said.className = '';
  said.textContent = doing;
  try {
    said.textContent = (await f()) ?? 'done';
  } catch (e) {
    said.className = 'bad';
    said.textContent = e.message + (e.hint ? ` (${e.hint})` : '');
  }
}

function deploy(e, said) {
  e.preventDefault();
  const f = e.target;
  const name = f.name.value, fn = { image: f.image.value };
  if (f.memory.value) fn.memory_mib = Number(f.memory.value);
  attempt(said, 'deploying', async () => {
    // One that is there keeps its other settings.
    const [method, body] = state.functions.has(name) ? ['PATCH', fn] : ['PUT', { name, snapshot: {}, ...fn }];
    await change(method, `/v1/functions/${encodeURIComponent(name)}`, body, (ev) => { said.textContent = `${ev.stage} ${ev.detail ?? ''}`; });
    return `${name} is deployed`;
  });
}

function confirmed(text) {
  const d = document.getElementById('confirm');
  document.getElementById('confirm-text').textContent = text;
  d.returnValue = 'no';
  d.showModal();
  return new Promise((r) => {
    const closed = () => {
      if (d.open) return; // of the time before: it is told of late
      d.removeEventListener('close', closed);
      r(d.returnValue === 'yes');
    };
    d.addEventListener('close', closed);
  });
}

export function oneFunction(name) {
  const path = `/v1/functions/${encodeURIComponent(name)}`;
  const f = state.functions.get(name);
  if (!f) {
    const none = page(name, el('p', {}, `There is no function ${name}.`));
    none.stale = () => state.functions.has(name); // it has been deployed
    return none;
  }
  const left = new AbortController();
  const said = el('p', { role: 'status' }), answer = el('pre', { tabindex: '0', 'aria-label': 'Answer' }, '');
  answer.hidden = true;
  const invoke = (e) => {
    e.preventDefault();
    const form = e.target;
    attempt(said, 'waiting for the answer', async () => {
      const method = form.method_.value, body = form.body.value;
      const headers = form.start.value ? { 'Skep-Start': form.start.value } : {};
      const r = await request(method, `${path}/invoke/${form.path.value.replace(/^\//, '')}`, method === 'GET' ? undefined : body, { headers, raw: true, signal: left.signal });
      said.textContent = `answering ${r.status}`;
      answer.textContent = '';
      answer.hidden = false;
      const whole = await beginning(r, answerMost, (text) => { answer.textContent = text; });
      return whole ? `answered ${r.status}` : `answered ${r.status}; this is the beginning`;
    });
  };
  const scale = (e) => {
    e.preventDefault();
    const form = e.target;
    attempt(said, 'setting', async () => {
      await change('PATCH', path, { max_instances: Number(form.most.value), keep_alive: form.keep.value }, () => {});
      return 'set';
    });
  };
  const snapshot = () => attempt(said, 'booting an instance for its snapshot', async () => {
    const r = await request('POST', '/v1/snapshots', JSON.stringify({ function: name }));
    return `snapshot ${(await r.json()).id}`;
  });
  const remove = async () => {
    if (!await confirmed(`Remove ${name}, with its snapshots and logs?`)) return;
    attempt(said, 'draining', async () => { await request('DELETE', path); location.hash = '#/functions'; });
  };
  const logs = el('pre', { tabindex: '0', 'aria-label': 'Log' });
  const view = page(name,
    live(() => {
      const f = state.functions.get(name);
      if (!f) return [el('p', { class: 'bad' }, `${name} has been removed.`)];
      return [el('p', { class: 'dim' }, `${f.image}, ${f.memory_mib ?? 256} MiB, revision ${f.revision ?? 0} `, f.url ? el('a', { href: f.url, rel: 'noreferrer' }, f.url) : '')];
    }),
    el('form', { class: 'inline', onsubmit: invoke },
      el('label', {}, 'Method', el('select', { name: 'method_' }, ...['GET', 'POST', 'PUT', 'DELETE'].map((m) => el('option', {}, m)))),
      field('Path', 'path', { value: '/' }), field('Body', 'body'),
      el('label', {}, 'Start', el('select', { name: 'start' }, ...[['', 'as it comes'], ['restore', 'restore'], ['boot', 'boot'], ['warm', 'warm']].map(([v, t]) => el('option', { value: v }, t)))),
      el('button', {}, 'Invoke')),
    el('form', { class: 'inline', onsubmit: scale },
      field('Instances at most', 'most', { type: 'number', required: true, min: 1, max: 10000, value: f.max_instances ?? 8 }),
      field('Kept idle for', 'keep', { value: f.keep_alive ?? '1m0s', size: 8 }),
      el('button', {}, 'Set'), el('button', { type: 'button', onclick: snapshot }, 'Make a snapshot'),
      el('button', { type: 'button', class: 'danger', onclick: remove }, 'Remove…')),
    said, answer,
    el('h2', {}, 'Instances'), live(() => [table('Instances', ['Instance', 'State', 'Start', 'Requests', 'Memory', 'Since'],
      [...state.instances.values()].filter((i) => i.function === name).map((i) => [i.id, el('td', { class: 'state' }, i.state), i.start || '–', String(i.requests), size(resident(i.id)), clock(i.created)]), 'none runs')]),
    el('h2', {}, 'Instances over time'), legend('States', STATES), live(() => [timeline(name)]),
    el('h2', {}, 'Starts'), legend(), live(() => [startTable(name)]),
    el('h2', {}, 'Requests'), live(() => [requestTable(state.requests.filter((r) => r.function === name), 'Requests')]),
    el('h2', {}, 'Snapshots'), live(() => [snapshotTable([...state.snapshots.values()].filter((s) => s.function === name))]),
    el('h2', {}, 'Log'), logs);
  view.leave = () => left.abort();
  followLogs(path, logs, left.signal);
  if (!f.url) { // events do not tell it
    get(path).then((d) => {
      const now = state.functions.get(name);
      if (now) state.functions.set(name, { ...now, url: d.url });
      view.redraw();
    }).catch(() => {}); // it is only missing
  }
  return view;
}

// followLogs shows a function's output until it is stopped, beyond the end of a daemon too.
async function followLogs(path, pre, stop) {
  let shown = [], due = false;
  const draw = () => {
    due = false;
    const atEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 8;
    pre.textContent = shown.join('\n');
    if (atEnd) pre.scrollTop = pre.scrollHeight;
  };
  const add = (line) => {
    shown.push(line.length > logLineMost ? `${line.slice(0, logLineMost)}…` : line);
    if (shown.length > logLines) shown = shown.slice(-logLines / 2);
    if (!due) setTimeout(draw, 100); // a function may write as fast as it likes
    due = true;
  };
  for (let pause = 500; !stop.aborted; pause = Math.min(pause * 2, 8000)) {
    let why = 'the daemon has ended';
    try {
      const r = await request('GET', `${path}/logs?follow=true&tail=200`, undefined, { signal: stop });
      shown = []; // the last of them come again
      await lines(r, (line) => { add(line); pause = 250; });
    } catch (e) {
      why = e.message;
      if (e.status === 401 || e.status === 404) return add(`[the log has ended: ${why}]`);
    }
    if (stop.aborted) return;
    if (shown.at(-1) !== `[the log broke off: ${why}]`) add(`[the log broke off: ${why}]`);
    await new Promise((r) => setTimeout(r, pause));
  }
}

function snapshotTable(list) {
  return table('Snapshots', ['Snapshot', 'Function', 'Made', 'Why', 'On disk', 'Guest', 'Usable'], list.map((s) => [
    link(`/snapshots/${s.id}`, s.id), functionLink(s.function), new Date(s.created).toLocaleString(), s.reason, size(s.disk_bytes), `${s.memory_mib} MiB`,
    el('td', { class: s.usable ? 'text' : 'text bad' }, s.usable ? 'yes' : s.problem ?? 'no')]), 'no snapshots');
}

export function snapshots() {
  let most = rowsShown;
  const list = live(() => {
    const all = [...state.snapshots.values()];
    return [snapshotTable(all.slice(0, most)), ...rest(all.length, most, () => { most = Infinity; list.redraw(); })];
  });
  return page('Snapshots', list);
}

const kinds = [['data', '--queue', 'held by the snapshot'], ['touched', '--resume', 'touched by its guests'], ['prefetched', '--process', 'prefetched: the working set'], ['missed', '--bad', 'touched and not prefetched'], ['wasted', '--slot', 'prefetched and not touched']];

export function oneSnapshot(id) {
  const canvas = el('canvas', { role: 'img', 'aria-label': 'Map of guest memory' });
  const about = el('div'), said = el('p', { role: 'status' }, 'reading');
  const show = async () => {
    const m = await get(`/v1/snapshots/${encodeURIComponent(id)}/memory?pages=true`);
    const pages = m.memory_bytes / 4096, width = 512, height = Math.ceil(pages / width);
    canvas.width = width;
    canvas.height = height;
    canvas.style.height = `${Math.min(height * 2, 512)}px`;
    const ctx = canvas.getContext('2d'), style = getComputedStyle(document.documentElement);
    const rows = [];
    for (const [kind, color, text] of kinds) {
      const runs = m.map[kind];
      let n = 0;
      ctx.fillStyle = style.getPropertyValue(color);
      for (const [first, count] of runs ?? []) {
        n += count;
        for (let p = first; p < first + count;) {
          const x = p % width, w = Math.min(width - x, first + count - p);
          ctx.fillRect(x, Math.floor(p / width), w, 1);
          p += w;
        }
      }
      const key = el('i');
      key.style.background = `var(${color})`;
      rows.push([el('td', {}, el('span', { class: 'legend' }, el('span', {}, key, text))), runs ? String(n) : 'not known', runs ? size(n * 4096) : '–']);
    }
    canvas.setAttribute('aria-label', `Map of ${pages} pages of guest memory, from left to right and top to bottom; the table below counts them`);
    about.replaceChildren(table('Pages of guest memory', ['Pages', 'Number', 'Size'], rows),
      table('Working set', ['What', 'Pages', 'Runs', 'Pages in a run', 'Contents'], ['trace', 'working_set', 'trial'].filter((k) => m[k]?.summary).map((k) => {
        const s = m[k].summary;
        return [k.replace('_', ' '), String(s.pages), String(s.runs), s.contiguity_pages.toFixed(1), size(s.bytes)];
      }), 'nothing is recorded yet: the first restore records it'));
    return `Policy ${m.policy}; of ${m.function}.`;
  };
  attempt(said, 'reading', show);
  return page(`Snapshot ${id}`, said, canvas, about);
}
