/** Whether tokens went to the same experts, and whether a tie excuses it where they did not. */

/** A token of which the candidate chose another set of experts, whatever the order. */
export interface Rerouted {
  readonly token: number;
  /** Where in the token's row the candidate names an expert that the reference has not. */
  readonly channel: number;
  /** The best expert that only the reference chose, and one that only the candidate did. */
  readonly reference: number;
  readonly candidate: number;
  /** How far apart the reference saw the two sets: its best expert that was passed over, less its worst that was taken instead. */
  readonly gap: number;
}

/**
 * Compares choices, [tokens][used]. `scores` is what the reference chose by, [tokens][experts]: gated, with the router's bias.
 */
export function reroutedTokens(
  reference: Int32Array,
  candidate: Int32Array,
  used: number,
  firstToken: number,
  scores: Float32Array,
): Rerouted[] {
  const experts = (scores.length / reference.length) * used;
  const found: Rerouted[] = [];
  for (let row = 0; row < reference.length; row += used) {
    const [expected, chosen] = [reference.subarray(row, row + used), candidate.subarray(row, row + used)];
    const token = row / used;
    const channel = Math.max(
      0,
      chosen.findIndex((expert) => !expected.includes(expert)),
    );
    const score = (expert: number) => scores[token * experts + expert] ?? Number.NaN;
    const missed = [...expected].filter((expert) => !chosen.includes(expert));
    if (missed.length === 0) continue;
    const taken = [...chosen].filter((expert) => !expected.includes(expert));
    // A NaN among the scores gives a NaN gap, which is no tie.
    const gap = Math.max(...missed.map(score)) - Math.min(...taken.map(score));
    found.push({
      token: firstToken + token,
      channel,
      reference: missed[0] ?? -1,
      candidate: chosen[channel] as number,
      gap,
    });
  }
  return found;
}
