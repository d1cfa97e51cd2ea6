/** Perigee as a peer: its runtime, without the server around it. Variant: the backend. */

import { thisMachine } from '../../../src/cli/load-engine.ts';
import { openGguf } from '../../../src/gguf/open.ts';
import { modelConfig } from '../../../src/model/gguf.ts';
import { loadRuntime } from '../../../src/runtime/load.ts';
import { pageTokens, type Runtime } from '../../../src/runtime/runtime.ts';
import { selectBackend } from '../../../src/select/select.ts';
import { contextTokens, decodePrompt, type Peer, promptTokens, servePeer, timed, type Workload } from './protocol.ts';

const pages = Int32Array.from({ length: Math.ceil(contextTokens / pageTokens) }, (_, page) => page);

/** Runs tokens from position `begin` in steps as large as the runtime takes; gives the likeliest next token. */
async function run(runtime: Runtime, tokens: readonly number[], begin: number): Promise<number> {
  let next = 0;
  for (let at = 0; at < tokens.length; at += runtime.limits.batchTokens) {
    const part = Int32Array.from(tokens.slice(at, at + runtime.limits.batchTokens));
    const logits = await runtime.step({
      tokens: part,
      positions: part.map((_, index) => begin + at + index),
      sequences: new Int32Array(part.length),
      pageTables: [pages],
      outputs: Int32Array.of(part.length - 1),
    });
    next = likeliest(logits);
  }
  return next;
}

function likeliest(logits: Float32Array): number {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if ((logits[id] ?? 0) > (logits[best] ?? 0)) best = id;
  return best;
}

async function measure(runtime: Runtime, { kind, tokens }: Workload): Promise<number> {
  if (kind !== 'decode') return timed(() => run(runtime, promptTokens(tokens), 0));
  let next = await run(runtime, promptTokens(decodePrompt), 0);
  return timed(async () => {
    for (let i = 0; i < tokens; i++) next = await run(runtime, [next], decodePrompt + i);
  });
}

async function load(file: string, threads: number, backend: string): Promise<Peer> {
  const gguf = await openGguf(file);
  const { isa, cpus } = selectBackend(thisMachine(), { backend, threads });
  const runtime = await loadRuntime({
    gguf,
    config: modelConfig(gguf),
    backend: backend as Runtime['backend'],
    isa,
    threads,
    ...(cpus !== null && { cpus }),
    contextTokens,
  });
  return {
    settings: `${runtime.backend} ${runtime.isa}, steps of ${runtime.limits.batchTokens}`,
    measure: (workload) => measure(runtime, workload),
  };
}

servePeer(load);
