/** Kimi K2's speed from a few of its layers. */
import { expect, it } from 'vitest';
import { kimiK2ActiveBytes, projectTimes } from '../../src/cli/projection.ts';

const shape = { layers: 3, denseLayers: 1, vocabulary: 16_384 };
/** Two tokens, of which each spends 2 ms in a layer's attention, 5 in a layer's experts, 3 in the dense layer, 1 in the head. */
const stages = Object.entries({
  embed: 0,
  qkv: 4,
  query: 4,
  attention: 2,
  'attention-out': 2,
  router: 4,
  'experts-in': 10,
  'experts-out': 6,
  dense: 6,
  head: 2,
}).map(([stage, milliseconds]) => ({ stage, milliseconds }));
const working = 40;

it('takes every layer as often as the whole model has it, and its whole vocabulary', () => {
  expect(projectTimes({ tokens: 2, milliseconds: working, stages }, shape)).toEqual({
    moeLayer: 7,
    denseLayer: 5,
    head: 10,
    total: 60 * 7 + 5 + 10,
  });
});

it('shares waiting and the time between steps out in proportion', () => {
  const waiting = [...stages, { stage: 'wait', milliseconds: 8 }];
  expect(projectTimes({ tokens: 2, milliseconds: 1.5 * working, stages: waiting }, shape)).toMatchObject({
    moeLayer: 10.5,
    total: 1.5 * 435,
  });
});

it('needs a layer of either kind', () => {
  expect(projectTimes({ tokens: 2, milliseconds: working, stages }, { ...shape, layers: 1 })).toBeNull();
});

it('knows that a token of Kimi K2 reads 32 billion weights', () => {
  // The model card says 32 B activated; Q4_K_M is 4.5 to 6.6 bits a weight.
  const weights = kimiK2ActiveBytes('bf16') / 2;
  expect(weights).toBeGreaterThan(31e9);
  expect(weights).toBeLessThan(33.5e9);
});
