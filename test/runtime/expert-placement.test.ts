import { describe, expect, it } from 'vitest';
import { placementMoves } from '../../src/runtime/expert-placement.ts';

describe('expert placement', () => {
  it('fills empty slots with the experts chosen most', () => {
    const counts = [1, 9, 3, 7, /* */ 5, 0, 2, 0];
    const moves = placementMoves(counts, 4, [Int32Array.of(-1, -1), Int32Array.of(-1)], 10);
    expect(moves).toEqual([
      { layer: 0, expert: 1, slot: 0 },
      { layer: 0, expert: 3, slot: 1 },
      { layer: 1, expert: 0, slot: 0 },
    ]);
  });

  it('fills slots in order where nothing is known', () => {
    expect(placementMoves(new Float64Array(4), 4, [Int32Array.of(-1, -1)], 10)).toEqual([
      { layer: 0, expert: 0, slot: 0 },
      { layer: 0, expert: 1, slot: 1 },
    ]);
  });

  it('replaces the rarest residents by clearly more popular experts only, few at a time', () => {
    const residents = [Int32Array.of(0, 1), Int32Array.of(0, 1)];
    const counts = [100, 10, 110, 9, /* */ 5, 50, 40, 90];
    expect(placementMoves(counts, 4, residents, 10)).toEqual([
      { layer: 0, expert: 2, slot: 1 },
      { layer: 1, expert: 3, slot: 0 },
    ]);
    expect(placementMoves(counts, 4, residents, 1)).toEqual([{ layer: 0, expert: 2, slot: 1 }]);
    expect(placementMoves([100, 100, 110, 120], 4, [Int32Array.of(0, 1)], 10)).toEqual([]);
  });

  it('leaves layers without slots, or with all experts, alone', () => {
    expect(placementMoves([1, 2, 3, 4], 2, [new Int32Array(0), Int32Array.of(0, 1)], 10)).toEqual([]);
  });
});
