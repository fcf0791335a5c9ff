import { enter, useToken, follow } from './api.js';
import { load, apply, heard, sample } from './state.js';
import { overview, functions, oneFunction, requests, snapshots, oneSnapshot } from './views.js';
import { experiments, oneExperiment, oneSection } from './experiments.js';
import { el, field } from './parts.js';

const main = document.getElementById('main'), status = document.getElementById('status');
let view = null, loaded = false, due = false;

// redraw shows what has changed, four times a second at most.
function redraw() {
  if (due || !loaded) return;
  due = true;
  setTimeout(() => requestAnimationFrame(() => {
    due = false;
    if (view?.stale?.()) route();
    else view?.redraw?.();
  }), 250);
}

// decoded is a part of the page's address, which anybody may have written.
function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

function route() {
  const [, where = '', name, part] = location.hash.slice(1).split('/');
  const arg = name && decoded(name);
  const ofExperiment = () => (part ? oneSection(arg, part) : oneExperiment(arg));
  const views = new Map(Object.entries({ functions: arg ? () => oneFunction(arg) : functions, requests, snapshots: arg ? () => oneSnapshot(arg) : snapshots,
    experiments: arg ? ofExperiment : experiments }));
  const make = views.get(where) ?? overview;
  view?.leave?.();
  view = make();
  main.replaceChildren(view);
  document.title = `${view.querySelector('h1').textContent} – skep`;
  for (const a of document.querySelectorAll('nav a')) {
    if (a.getAttribute('href') === `#/${where}`) a.setAttribute('aria-current', 'page');
    else a.removeAttribute('aria-current');
  }
}

function say(text, lost) {
  if (status.textContent !== text) status.textContent = text;
  status.className = lost ? 'lost' : '';
}

async function resync() {
  await load();
  await sample();
  const first = !loaded;
  loaded = true;
  if (first) route();
  redraw();
}

function locked(why) {
  say('not let in', true);
  loaded = false;
  view?.leave?.();
  const form = el('form', { class: 'inline', onsubmit: (e) => { e.preventDefault(); useToken(e.target.token.value); location.reload(); } },
    field('Control token', 'token', { type: 'password', required: true, autocomplete: 'off' }), el('button', {}, 'Enter'));
  main.replaceChildren(el('h1', {}, 'Not let in'), el('p', {}, why || 'This tab has no session.'),
    el('p', {}, 'skep dashboard prints a link that lets one tab in, once.'), form);
}

async function begin() {
  try {
    if (!await enter()) return locked();
  } catch (e) {
    return locked(`${e.message}. ${e.hint ?? ''}`);
  }
  addEventListener('hashchange', () => {
    if (location.hash === '#main') return;
    if (loaded) { route(); view.querySelector('h1').focus(); }
  });
  document.getElementById('skip').onclick = (e) => { e.preventDefault(); main.focus(); };
  follow(async (ev) => {
    heard(ev);
    if (ev.kind === 'resync') return resync();
    apply(ev);
    redraw();
  }, () => say('live'), (e) => {
    if (e.status === 401) locked('The session has ended.');
    else say(e.status ? `${e.message}; trying again` : 'no daemon answers; trying again', true);
  });
  setInterval(() => { if (loaded && !document.hidden) sample().then(redraw, () => {}); }, 2000);
}

begin();
