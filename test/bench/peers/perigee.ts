/** Perigee as a peer: its runtime, without the server around it. Variant: the backend. */

import { thisMachine } from '../../../src/cli/load-engine.ts';
import { openGguf } from '../../../src/gguf/open.ts';
import { modelConfig } from '../../../src/model/gguf.ts';
import { loadRuntime } from '../../../src/runtime/load.ts';
import type { Runtime } from '../../../src/runtime/runtime.ts';
import { selectBackend } from '../../../src/select/select.ts';
import { decodeTokens, promptTokens, runTokens } from '../prompt.ts';
import { contextTokens, decodePrompt, type Peer, servePeer, timed, type Workload } from './protocol.ts';

async function measure(runtime: Runtime, { kind, tokens }: Workload): Promise<number> {
  if (kind !== 'decode') return timed(() => runTokens(runtime, promptTokens(tokens), 0));
  const first = await runTokens(runtime, promptTokens(decodePrompt), 0);
  return timed(() => decodeTokens(runtime, first, decodePrompt, tokens));
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
