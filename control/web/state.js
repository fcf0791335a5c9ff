// What is known of the node: read once when events begin, and kept up by them.
import { get } from './api.js';

export const PHASES = ['queue', 'slot', 'spawn', 'load', 'install', 'resume', 'boot', 'clone', 'init', 'connect', 'process', 'stream'];
export const STATES = ['starting', 'busy', 'idle', 'draining'];
const keepRequests = 300, keepSamples = 300, keepEnded = 12, keepLives = 60;

export const state = {
  functions: new Map(), instances: new Map(), snapshots: new Map(), requests: [], starts: new Map(), lives: new Map(), samples: [], usage: null,
};

// The daemon's clock, by which events are, against this one's.
let ahead = 0;
export const now = () => Date.now() + ahead;

// live notes that an instance is in a state since a time, or has ended then.
function live(i, since) {
  const life = state.lives.get(i.id) ?? { id: i.id, function: i.function, parts: [], ended: 0 };
  if (life.ended) return;
  if (i.state === 'stopped') life.ended = since;
  else if (life.parts.at(-1)?.state !== i.state) life.parts.push({ state: i.state, since });
  if (life.parts.length > 500) life.parts.shift();
  if (life.parts.length) state.lives.set(i.id, life);
  for (const [id, l] of state.lives) {
    if (state.lives.size <= keepLives) break;
    if (l.ended) state.lives.delete(id);
  }
}

export async function load() {
  const [functions, instances, snapshots, requests] = await Promise.all([
    get('/v1/functions'), get('/v1/instances'), get('/v1/snapshots'), get(`/v1/invocations?limit=${keepRequests}`),
  ]);
  state.functions = new Map(functions.map((f) => [f.name, f]));
  state.instances = new Map(instances.map((i) => [i.id, i]));
  state.snapshots = new Map(snapshots.map((s) => [s.id, s]));
  for (const i of instances) live(i, now());
  for (const life of state.lives.values()) if (!state.instances.has(life.id) && !life.ended) life.ended = now(); // with a daemon that was
  const seen = new Set(requests.map((r) => r.id));
  state.requests = state.requests.filter((r) => !seen.has(r.id) && (requests.length === 0 || r.time > requests[0].time)).concat(requests).slice(0, keepRequests);
}

export function heard(ev) {
  const at = Date.parse(ev.time);
  if (at > 0) ahead = at - Date.now();
}

export function apply(ev) {
  switch (ev.kind) {
    case 'instance': {
      const i = { ...ev.instance, reason: ev.reason };
      live(i, Date.parse(ev.time));
      if (i.state === 'starting') state.starts.set(i.id, { id: i.id, function: i.function, began: Date.parse(ev.time), phases: {}, ready: 0 });
      const start = state.starts.get(i.id);
      if (start && i.state !== 'starting' && !start.ready) start.ready = Date.parse(ev.time);
      if (start && i.state === 'stopped') start.reason = ev.reason;
      while (state.starts.size > keepEnded) state.starts.delete(state.starts.keys().next().value);
      if (i.state === 'stopped') state.instances.delete(i.id);
      else state.instances.set(i.id, i);
      break;
    }
    case 'phase': {
      const start = state.starts.get(ev.phase.instance);
      if (start) start.phases[ev.phase.name] = ev.phase.took_ns / 1e6;
      break;
    }
    case 'invocation':
      if (state.requests.some((r) => r.id === ev.invocation.id)) break; // read with the rest already
      state.requests.unshift(ev.invocation);
      state.requests.length = Math.min(state.requests.length, keepRequests);
      break;
    case 'function':
      state.functions.set(ev.function, { ...state.functions.get(ev.function), ...ev.settings });
      state.functions = new Map([...state.functions].sort(([a], [b]) => (a < b ? -1 : 1)));
      break;
    case 'function_removed': state.functions.delete(ev.function); break;
    case 'snapshot': state.snapshots = new Map([[ev.snapshot.id, ev.snapshot], ...state.snapshots]); break;
    case 'snapshot_removed': state.snapshots.delete(ev.snapshot.id); break;
  }
}

export async function sample() {
  state.usage = await get('/v1/usage');
  const u = state.usage;
  const recent = state.requests.slice(0, 100);
  state.samples.push({
    instances: state.instances.size,
    cold: recent.length ? recent.filter((r) => r.start && r.start !== 'warm').length / recent.length : 0,
    queue: Object.values(u.waiting).reduce((a, b) => a + b, 0),
    memory: u.instances.reduce((a, i) => a + i.resident_bytes, 0),
    used: u.memory_bytes - u.available_bytes,
  });
  if (state.samples.length > keepSamples) state.samples.shift();
}

export const resident = (id) => state.usage?.instances.find((i) => i.id === id)?.resident_bytes;
