import { describe, expect, it } from 'vitest';
import type { ConstraintRun, ConstraintSpec, Constraints, TokenMask } from '../../src/constrain/types.ts';
import { createScheduler } from '../../src/scheduler/scheduler.ts';
import { eventually } from './eventually.ts';
import { FakeRuntime } from './fake-runtime.ts';
import { collect, expected, hash, range, request, selection } from './requests.ts';

const spec: ConstraintSpec = { answer: { schema: {}, strict: true }, calls: null, reasoningOpen: false };

/** Allows what a test says, when it says so. */
class ByHand implements Constraints {
  readonly runs: (ConstraintRun & { accepted: number[]; closed: boolean; say(mask: TokenMask): void; fail(): void })[] =
    [];
  closed = false;

  async open(_: ConstraintSpec, changed: () => void): Promise<ConstraintRun> {
    const run = {
      mask: undefined as TokenMask | undefined,
      failure: null as unknown,
      unenforced: [],
      accepted: [] as number[],
      closed: false,
      accept(token: number) {
        run.mask = undefined;
        run.accepted.push(token);
      },
      say(mask: TokenMask) {
        run.mask = mask;
        changed();
      },
      fail() {
        run.failure = new Error('no grammar');
        changed();
      },
      close() {
        run.closed = true;
      },
    };
    this.runs.push(run);
    return run;
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

const only = (id: number): TokenMask => Int32Array.of(id < 32 ? 1 << id : 0, id < 32 ? 0 : 1 << (id - 32));

function start(constraints?: Constraints) {
  const runtime = new FakeRuntime({ next: hash, sequences: 4 });
  return createScheduler(runtime, { selection, constraints });
}

describe('a constrained sequence', () => {
  it('chooses among the allowed tokens, and tells the constraint which', async () => {
    const constraints = new ByHand();
    const engine = start(constraints);
    const answer = collect(engine, request(range(0, 5), { constraint: spec, maxTokens: 3 }));
    for (const [index, id] of [40, 3, 17].entries()) {
      await eventually(() => expect(constraints.runs[0]?.accepted).toHaveLength(index));
      constraints.runs[0]!.say(only(id));
    }
    expect((await answer).tokens).toEqual([40, 3, 17]);
    expect(constraints.runs[0]).toMatchObject({ accepted: [40, 3], closed: true });
    await engine.close();
    expect(constraints.closed).toBe(true);
  });

  it('waits for its mask while others go on', async () => {
    const constraints = new ByHand();
    const engine = start(constraints);
    const held = collect(engine, request(range(0, 5), { constraint: spec, maxTokens: 1 }));
    const free = await collect(engine, request(range(9, 20), { maxTokens: 30 }));
    expect(free.tokens).toEqual(expected(range(9, 20), 30));
    constraints.runs[0]!.say(null);
    expect((await held).tokens).toEqual(expected(range(0, 5), 1));
    await engine.close();
  });

  it('fails alone when its constraint does', async () => {
    const constraints = new ByHand();
    const engine = start(constraints);
    const failing = collect(engine, request(range(0, 5), { constraint: spec }));
    await eventually(() => expect(constraints.runs).toHaveLength(1));
    constraints.runs[0]!.fail();
    await expect(failing).rejects.toThrow('no grammar');
    expect(constraints.runs[0]!.closed).toBe(true);
    expect((await collect(engine, request(range(0, 5)))).tokens).toEqual(expected(range(0, 5), 8));
    expect(engine.status().statistics?.pages.used).toBe(0);
    await engine.close();
  });

  it('is refused where nothing can hold it to its schema, unless it is free to be text', async () => {
    const engine = start();
    const code = 'CONSTRAINT_UNAVAILABLE';
    await expect(collect(engine, request(range(0, 5), { constraint: spec }))).rejects.toMatchObject({ code });
    const calls = { tools: [], required: false, parallel: true, firstIndex: 0 };
    const free = request(range(0, 5), { constraint: { answer: null, calls, reasoningOpen: false } });
    expect((await collect(engine, free)).tokens).toEqual(expected(range(0, 5), 8));
    await engine.close();
  });
});
