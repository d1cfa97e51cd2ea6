/** An engine process over the fake runtime, for tests that fork one. */
import { existsSync } from 'node:fs';
import { serveEngine } from '../../src/engine-process/serve-engine.ts';
import { perigeeError } from '../../src/errors.ts';
import { pageTokens } from '../../src/runtime/runtime.ts';
import { FakeRuntime } from '../scheduler/fake-runtime.ts';
import { type Reply, replay } from './replay.ts';

export interface FakeLoadOptions {
  readonly vocabulary: number;
  readonly replies: readonly Reply[];
  /** The runtime fails on the step that holds this token. */
  readonly poison?: number;
  /** The step that holds this token never ends. */
  readonly hang?: number;
  /** The step that holds this token never ends, and the process hears nothing any more. */
  readonly spin?: number;
  /** Loading fails once this file exists. */
  readonly brokenBy?: string;
  /** Loading fails with this sentence. */
  readonly cannotLoad?: string;
}

serveEngine<FakeLoadOptions>(async (options, onProgress) => {
  onProgress({ bytesRead: 50, bytesTotal: 100 });
  if (options.cannotLoad !== undefined) throw perigeeError('MODEL_UNSUPPORTED', { what: options.cannotLoad });
  if (options.brokenBy !== undefined && existsSync(options.brokenBy)) process.kill(process.pid, 'SIGKILL');
  onProgress({ bytesRead: 100, bytesTotal: 100 });
  const runtime = new FakeRuntime({
    next: replay(options.replies),
    vocabulary: options.vocabulary,
    pages: 64,
    context: 64 * pageTokens,
    batchTokens: 256,
    beforeStep: ({ tokens }) => {
      if (options.poison !== undefined && tokens.includes(options.poison)) throw new Error('rank 1 trapped');
      if (options.spin !== undefined && tokens.includes(options.spin)) for (;;);
      if (options.hang !== undefined && tokens.includes(options.hang)) return new Promise<void>(() => {});
      return undefined;
    },
  });
  return { runtime, selection: { backend: 'wasm', isa: 'fake', threads: 1, reasons: ['a test asked for it'] } };
});
