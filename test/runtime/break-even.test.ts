/** From how many tokens on experts are brought to the device: arithmetic on measured times, and what the ranks are asked. */
import { describe, expect, it } from 'vitest';
import { breakEven, measureBreakEven } from '../../src/runtime/break-even.ts';
import type { ExpertPart, ExpertRanks } from '../../src/runtime/expert-ranks.ts';
import { syntheticTestModel } from './models.ts';

describe('the break-even', () => {
  const few = { tokens: 32, milliseconds: 10 };
  const many = { tokens: 256, milliseconds: 38 };

  it('is where the line through both measurements meets the time of streaming', () => {
    expect(breakEven(few, many, 56).tokens).toBe(400);
    expect(breakEven(few, many, 56).why).toMatch(/^steps of 400 tokens and more/);
  });

  it('is one token where streaming is always faster, and never where the ranks cost nothing more or nothing streams', () => {
    expect(breakEven(few, many, 1).tokens).toBe(1);
    expect(breakEven(few, { ...many, milliseconds: 9 }, 1).tokens).toBe(1);
    expect(breakEven(few, { ...many, milliseconds: 9 }, 11).tokens).toBe(Number.POSITIVE_INFINITY);
    expect(breakEven(few, many, Number.POSITIVE_INFINITY).tokens).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('what the ranks are asked while they are measured', () => {
  it('leaves out as many experts as the device holds, and asks for no others', async () => {
    const { config } = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const { experts, expertsUsed, hidden, layers, denseLayers } = config;
    const tokens = 256;
    const offsets = { asked: 0, done: 64, failed: 128, h: 4096, chosen: 0, weight: 0, sum: 0 };
    offsets.chosen = offsets.h + 4 * tokens * hidden;
    offsets.weight = offsets.chosen + 4 * tokens * expertsUsed;
    const memory = new Uint8Array(offsets.weight + 4 * tokens * expertsUsed);
    const words = new Int32Array(memory.buffer);
    const asked: number[] = [];
    let aborted = false;
    const ranks: ExpertRanks = {
      kind: 'native',
      isa: 'none',
      threads: 1,
      memory,
      offsets,
      parts: (): readonly ExpertPart[] => [],
      async run(n) {
        words.fill(0, 0, 64);
        aborted = false;
        while (!aborted) {
          const layer = words[offsets.asked / 4] as number;
          if (layer > (words[offsets.done / 4] as number)) {
            asked.push(...words.subarray(offsets.chosen / 4, offsets.chosen / 4 + n * expertsUsed));
            words[offsets.done / 4] = layer;
          }
          await new Promise(setImmediate);
        }
        return false;
      },
      assertWhole: async () => {},
      abort: () => {
        aborted = true;
      },
      close: async () => {},
    };
    const held = experts / 4;
    const resident = Array.from({ length: layers }, (_, layer) => (layer < denseLayers ? 0 : held));
    await measureBreakEven(ranks, config, tokens, 10, resident);
    const leftOut = asked.filter((expert) => expert < 0).length / asked.length;
    expect(leftOut).toBeGreaterThan(0.2);
    expect(leftOut).toBeLessThan(0.3);
    expect(asked.every((expert) => expert === -1 || (expert >= held && expert < experts))).toBe(true);
  });
});
