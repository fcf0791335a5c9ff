// The control API, with the session's token, which this tab alone has.

const key = 'skep-session';
export const EVENTS = 'instance,phase,invocation,deploy,function,function_removed,snapshot,snapshot_removed';

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || `the daemon answered ${status}`);
    this.status = status;
    this.hint = body.hint || '';
  }
}

// enter makes a session of the ticket in the page's address, and takes it out of there.
export async function enter() {
  const ticket = /^#ticket=([\w-]+)$/.exec(location.hash);
  if (ticket) {
    history.replaceState(null, '', '/#/');
    const r = await fetch('/ui/session', { method: 'POST', body: JSON.stringify({ ticket: ticket[1] }) });
    if (!r.ok) throw new Problem(r.status, await r.json());
    sessionStorage.setItem(key, (await r.json()).token);
  }
  return Boolean(sessionStorage.getItem(key));
}

export function useToken(token) { sessionStorage.setItem(key, token); }

export async function request(method, path, body, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(key)}`, ...options.headers };
  const r = await fetch(path, { method, headers, body, signal: options.signal, redirect: 'error', cache: 'no-store' });
  if (options.raw) return r;
  if (!r.ok) {
    let problem = {};
    try { problem = await r.json(); } catch { /* not the daemon's words */ }
    throw new Problem(r.status, problem);
  }
  return r;
}

export const get = async (path) => (await request('GET', path)).json();

// lines calls f for each line of an answer, as it comes, and reads on when that is done.
export async function lines(response, f) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    let rest = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split('\n');
      rest = parts.pop();
      for (const part of parts) await f(part);
    }
    if (rest) await f(rest);
  } finally {
    reader.cancel().catch(() => {}); // of what has broken off there is nothing left
  }
}

// beginning reads the first part of an answer, which may have no end, and tells what there is so far.
export async function beginning(response, most, tell) {
  let text = '';
  if (!response.body) return true;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    while (text.length <= most) {
      const { done, value } = await reader.read();
      if (done) return true;
      text += value;
      tell(text.slice(0, most));
    }
    return false;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// change sends what changes a function, and tells its events; it fails as the change does.
export async function change(method, path, body, tell) {
  const type = method === 'PATCH' ? 'application/merge-patch+json' : 'application/json';
  let failure = new Problem(0, { detail: 'the answer broke off' });
  await lines(await request(method, path, JSON.stringify(body), { headers: { 'Content-Type': type } }), (line) => {
    const l = JSON.parse(line);
    if (l.event) tell(l.event);
    if (l.failure) failure = new Problem(l.failure.status, l.failure);
    if (l.function) failure = null;
  });
  if (failure) throw failure;
}

// follow reads events for ever: f gets each, when it is done with the one before, and lost
// is told when there is no daemon. A resync that f failed at is asked for again.
export async function follow(f, found, lost) {
  let last = '';
  for (let pause = 250; ; pause = Math.min(pause * 2, 4000)) {
    try {
      const headers = last ? { 'Last-Event-ID': last } : {};
      const r = await request('GET', `/v1/events?kind=${EVENTS}`, undefined, { headers });
      found();
      await lines(r, async (line) => {
        if (!line.startsWith('data: ')) return;
        const ev = JSON.parse(line.slice(6));
        if (ev.kind === 'resync') last = '';
        await f(ev);
        last = ev.id;
        pause = 125;
      });
      lost(new Error('the daemon has ended'));
    } catch (e) {
      lost(e);
      if (e.status === 401 || e.status === 403) return;
    }
    await new Promise((r) => setTimeout(r, pause));
  }
}
