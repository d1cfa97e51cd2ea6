/** Which experts lie in spare device memory: those that tokens have chosen most often. */

/** Experts of a layer's slots, [slots]; -1: empty. */
export type Residents = Int32Array;

export interface Move {
  readonly layer: number;
  readonly expert: number;
  readonly slot: number;
}

/** A newcomer must be chosen this much more often than whom it replaces, or both would change places for ever. */
const advantage = 1.25;

/**
 * The moves that gain most, best first, at most `most`. `counts` [layers][experts] may be of any scale; without any, slots are
 * filled in the experts' order.
 */
export function placementMoves(
  counts: ArrayLike<number>,
  experts: number,
  residents: readonly Residents[],
  most: number,
): Move[] {
  const moves = residents.flatMap((slots, layer) => {
    const count = (expert: number) => (expert < 0 ? -1 : (counts[layer * experts + expert] ?? 0));
    const resident = new Set(slots);
    const outside = Array.from({ length: experts }, (_, expert) => expert)
      .filter((expert) => !resident.has(expert))
      .sort((a, b) => count(b) - count(a) || a - b);
    const weakest = Array.from(slots.keys()).sort((a, b) => count(slots[a] ?? -1) - count(slots[b] ?? -1) || a - b);
    return weakest.slice(0, outside.length).flatMap((slot, rank) => {
      const expert = outside[rank] as number;
      const held = count(slots[slot] ?? -1);
      const better = held < 0 || count(expert) > held * advantage;
      return better ? [{ layer, expert, slot, gain: count(expert) - held }] : [];
    });
  });
  return moves
    .sort((a, b) => b.gain - a.gain || a.layer - b.layer || a.slot - b.slot)
    .slice(0, most)
    .map(({ layer, expert, slot }) => ({ layer, expert, slot }));
}
