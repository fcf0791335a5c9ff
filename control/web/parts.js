// Pieces of views. Text is only ever set as text, so that nothing that a function is
// named, writes or answers becomes a part of the page.
import { PHASES, STATES } from './state.js';

export function el(tag, attrs = {}, ...children) {
  const e = tag === 'svg' || tag === 'path' ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(attrs)) {
    if (k === 'onclick' || k === 'onsubmit' || k === 'oninput') e[k] = v;
    else if (v !== undefined && v !== false) e.setAttribute(k, v === true ? '' : v);
  }
  e.append(...children.filter((c) => c !== undefined && c !== null));
  return e;
}

export function table(caption, heads, rows, empty = 'none') {
  if (rows.length === 0) return el('p', { class: 'dim' }, empty);
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption }, el('table', {},
    el('caption', {}, caption),
    el('thead', {}, el('tr', {}, ...heads.map((h) => el('th', { scope: 'col' }, h)))),
    el('tbody', {}, ...rows.map((r) => el('tr', {}, ...r.map((c) => (c instanceof HTMLTableCellElement ? c : el('td', {}, c ?? '–'))))))));
}

export function size(n) {
  if (n === undefined) return '–';
  for (const [unit, v] of [['GiB', 2 ** 30], ['MiB', 2 ** 20], ['KiB', 1024]]) if (n >= v) return `${(n / v).toFixed(1)} ${unit}`;
  return `${n} B`;
}

export function ms(v) {
  if (v === undefined || v === 0) return '–';
  return v < 10 ? v.toFixed(2) : v < 100 ? v.toFixed(1) : v.toFixed(0);
}

export const clock = (t) => new Date(t).toLocaleTimeString([], { hour12: false });
export const link = (path, text) => el('a', { href: `#${path}` }, text);
export const functionLink = (name) => link(`/functions/${encodeURIComponent(name)}`, name);

export function chart(title, text, values, most) {
  const top = Math.max(most ?? 0, ...values, 1e-9);
  if (values.length === 1) values = [values[0], values[0]];
  const n = Math.max(values.length - 1, 1);
  const d = values.map((v, i) => `${i ? 'L' : 'M'}${(i / n) * 300} ${70 - (v / top) * 66}`).join('');
  return el('figure', { class: 'card' },
    el('svg', { class: 'chart', viewBox: '0 0 300 72', preserveAspectRatio: 'none', role: 'img', 'aria-label': `${title} over time, now ${text}` }, el('path', { d: d || 'M0 70' })),
    el('figcaption', {}, `${title}: ${text}`));
}

// waterfall is the phases of a request or of a start, in milliseconds, as a bar of which
// scale milliseconds are all.
export function waterfall(phases, scale) {
  const said = [];
  const bar = el('div', { class: 'bar', 'aria-hidden': 'true' });
  let left = scale;
  for (const name of PHASES) {
    const v = phases[name];
    if (!v) continue;
    said.push(`${name} ${ms(v)} ms`);
    const part = el('span', { title: `${name} ${ms(v)} ms` });
    part.style.flexGrow = v;
    part.style.background = `var(--${name})`;
    bar.append(part);
    left -= v;
  }
  if (left > 0) {
    const rest = el('span', { class: 'left' });
    rest.style.flexGrow = left;
    bar.append(rest);
  }
  return el('td', { class: 'wide' }, bar, el('span', { class: 'hidden' }, said.join(', ') || 'no phase yet'));
}

// span is the time of an instance's states between two times, as a bar of which all is
// from the first to the last.
export function span(life, from, to) {
  const bar = el('div', { class: 'bar', 'aria-hidden': 'true' });
  const took = {};
  const add = (name, until, since) => {
    const part = el('span', name ? { title: `${name} ${seconds(until - since)}` } : { class: 'left' });
    part.style.flexGrow = Math.round((until - since) / 100); // less than 1 in all would not fill the bar
    if (name) part.style.background = `var(--${name})`;
    if (until > since) bar.append(part);
  };
  const end = life.ended || to;
  add('', Math.max(life.parts[0].since, from), from);
  life.parts.forEach((p, i) => {
    const since = Math.max(p.since, from), until = Math.max(life.parts[i + 1]?.since ?? end, from);
    took[p.state] = (took[p.state] ?? 0) + until - since;
    add(p.state, until, since);
  });
  add('', to, end);
  const said = STATES.filter((s) => took[s]).map((s) => `${s} for ${seconds(took[s])}`);
  if (life.ended) said.push('then it ended');
  return el('td', { class: 'wide' }, bar, el('span', { class: 'hidden' }, said.join(', ')));
}

const seconds = (v) => `${(v / 1000).toFixed(1)} s`;

export function legend(about = 'Phases', names = PHASES) {
  return el('ul', { class: 'legend', 'aria-label': about }, ...names.map((p) => {
    const i = el('i');
    i.style.background = `var(--${p})`;
    return el('li', {}, i, p);
  }));
}

export const phasesOf = (r) => Object.fromEntries(PHASES.map((p) => [p, (r.phases[`${p}_us`] ?? 0) / 1000]));

export function field(label, name, attrs = {}) {
  return el('label', {}, label, el('input', { name, ...attrs }));
}
