/** Engines that are closed, dropped, or lose their files at the worst moments: the process stays whole. */
import { execFile } from 'node:child_process';
import { copyFileSync, mkdtempSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { loadRuntime } from '../../src/runtime/load.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { bitsOf, openTestModel, promptLogits, someTokens, syntheticTestModel } from '../runtime/models.ts';

const support = nativeSupport();
const load = async (threads = 2) => {
  const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
  return loadRuntime({ ...model, backend: 'native', threads });
};
const script = (path: string) => new URL(path, import.meta.url);

if (!support.available) it.skip(`native: ${support.why}`, () => {});

describe.skipIf(!support.available)('a native engine', () => {
  it('rejects the step in flight with ENGINE_FAILED when it is closed, without waiting for its end', async () => {
    const runtime = await load();
    const step = promptLogits(runtime, someTokens(200, runtime.config.vocabulary));
    const closing = runtime.close();
    await expect(step).rejects.toMatchObject({ code: 'ENGINE_FAILED', message: expect.stringContaining('closed') });
    await closing;
  });

  it('may be closed twice, and fails steps afterwards', async () => {
    const runtime = await load();
    const [logits] = await promptLogits(runtime, [1, 2]);
    await Promise.all([runtime.close(), runtime.close()]);
    await runtime.close();
    expect(logits?.length).toBe(runtime.config.vocabulary);
    await expect(promptLogits(runtime, [1, 2])).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
  });

  it('leaves empty logits behind, not freed memory', async () => {
    const runtime = await load();
    const logits = await runtime.step({
      tokens: Int32Array.of(1),
      positions: Int32Array.of(0),
      sequences: Int32Array.of(0),
      pageTables: [Int32Array.of(0)],
      outputs: Int32Array.of(0),
    });
    expect(logits.length).toBe(runtime.config.vocabulary);
    await runtime.close();
    expect(logits.length).toBe(0);
  });

  it('runs beside others with equal bits', async () => {
    const runtimes = await Promise.all(Array.from({ length: 6 }, (_, i) => load(1 + (i % 3))));
    const tokens = someTokens(50, runtimes[0]?.config.vocabulary as number);
    const bits = await Promise.all(runtimes.map(async (runtime) => bitsOf(await promptLogits(runtime, tokens, [7]))));
    expect(new Set(bits).size).toBe(1);
    await Promise.all(runtimes.map((runtime) => runtime.close()));
  });

  it('leaves the event loop free during a step', async () => {
    const runtime = await load();
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    for (let i = 0; i < 5; i++) await promptLogits(runtime, someTokens(250, runtime.config.vocabulary));
    clearInterval(timer);
    expect(turns).toBeGreaterThan(0);
    await runtime.close();
  });

  it('uses no CPU while nothing is asked of it', async () => {
    const runtime = await load();
    await promptLogits(runtime, someTokens(8, runtime.config.vocabulary));
    const before = process.cpuUsage();
    await new Promise((resolve) => setTimeout(resolve, 500));
    const { user, system } = process.cpuUsage(before);
    await runtime.close();
    // Half a second of one spinning rank would be 500,000 microseconds.
    expect(user + system).toBeLessThan(200_000);
  });

  it('lets two worker threads have engines, and lets one be terminated during a step', async () => {
    const { gguf } = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    const start = () => {
      const worker = new Worker(script('./worker.ts'), { workerData: gguf.files[0]?.path });
      return { worker, stepping: new Promise((resolve) => worker.once('message', resolve)) };
    };
    for (let round = 0; round < 3; round++) {
      const workers = [start(), start()];
      await Promise.all(workers.map(({ stepping }) => stepping));
      await Promise.all(workers.map(({ worker }) => worker.terminate()));
    }
    const runtime = await load();
    expect((await promptLogits(runtime, [1, 2, 3])).length).toBe(3);
    await runtime.close();
  });

  it.each(['closed', 'dropped', 'left running'])('lets the process end by itself when it is %s', async (how) => {
    const { gguf } = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    const run = promisify(execFile);
    const { stdout } = await run(process.execPath, [
      '--expose-gc',
      script('./ending.ts').pathname,
      gguf.files[0]?.path ?? '',
      how,
    ]);
    expect(stdout).toBe('ended\n');
  });
});

describe.skipIf(!support.available)('a model file that shrinks under its map', () => {
  const copied = async () => {
    const { gguf } = await syntheticTestModel({ shape: 'tiny', mix: 'q8_0' });
    const path = join(mkdtempSync(join(tmpdir(), 'perigee-shrink-')), 'model.gguf');
    copyFileSync(gguf.files[0]?.path as string, path);
    return { path, model: await openTestModel(path), bytes: gguf.files[0]?.bytes as number };
  };

  it('makes the step reject and name it, and later ones too; the process lives on', async () => {
    const { path, model, bytes } = await copied();
    const runtime = await loadRuntime({ ...model, backend: 'native', threads: 2 });
    const tokens = someTokens(30, model.config.vocabulary);
    await promptLogits(runtime, tokens);
    truncateSync(path, Math.floor(bytes / 3));
    const shrank = { code: 'MODEL_FILE_SHRANK', message: expect.stringContaining(path) };
    await expect(promptLogits(runtime, tokens)).rejects.toMatchObject(shrank);
    await expect(promptLogits(runtime, tokens)).rejects.toMatchObject(shrank);
    await runtime.close();
    const other = await load();
    expect((await promptLogits(other, tokens)).length).toBe(tokens.length);
    await other.close();
  });

  it('is noticed where only bytes of its last page are gone, which read as zeros without a fault', async () => {
    const { path, model, bytes } = await copied();
    const runtime = await loadRuntime({ ...model, backend: 'native', threads: 2 });
    truncateSync(path, bytes - 1);
    await expect(promptLogits(runtime, [1, 2, 3])).rejects.toMatchObject({ code: 'MODEL_FILE_SHRANK' });
    await runtime.close();
  });

  it('is refused at load where it has shrunk since it was opened', async () => {
    const { path, model, bytes } = await copied();
    truncateSync(path, bytes - 4096);
    await expect(loadRuntime({ ...model, backend: 'native', threads: 2 })).rejects.toMatchObject({
      code: 'MODEL_FILE_SHRANK',
    });
  });
});
