/** Whether tokens went to the same experts, and whether scores excuse it where they did not. */

/** A token of which the candidate chose another set of experts, whatever the order. */
export interface Rerouted {
  readonly token: number;
  /** Where in the token's row the candidate names an expert that the reference has not. */
  readonly channel: number;
  /** An expert that only the reference chose, and one that only the candidate did. */
  readonly reference: number;
  readonly candidate: number;
  /**
   * By how much the candidate itself scored an expert that it passed over higher than one that it took instead; negative
   * where it followed its scores.
   */
  readonly gap: number;
}

/**
 * Compares choices, [tokens][used]. `scores` is what the candidate chose by, [tokens][experts]: gated, with the router's bias.
 * Only experts of one of `groups` equal groups compete with each other.
 */
export function reroutedTokens(
  reference: Int32Array,
  candidate: Int32Array,
  used: number,
  firstToken: number,
  scores: Float32Array,
  groups = 1,
): Rerouted[] {
  const experts = (scores.length / reference.length) * used;
  const groupOf = (expert: number) => Math.floor((expert * groups) / experts);
  const found: Rerouted[] = [];
  for (let row = 0; row < reference.length; row += used) {
    const [expected, chosen] = [reference.subarray(row, row + used), candidate.subarray(row, row + used)];
    const missed = [...expected].filter((expert) => !chosen.includes(expert));
    if (missed.length === 0) continue;
    const taken = [...chosen].filter((expert) => !expected.includes(expert));
    const token = row / used;
    const score = (expert: number) => scores[token * experts + expert] ?? Number.NaN;
    const gaps = missed.flatMap((a) => taken.filter((b) => groupOf(a) === groupOf(b)).map((b) => score(a) - score(b)));
    const channel = Math.max(
      0,
      chosen.findIndex((expert) => !expected.includes(expert)),
    );
    found.push({
      token: firstToken + token,
      channel,
      reference: missed[0] as number,
      candidate: chosen[channel] as number,
      // One expert twice leaves none that was taken instead; a NaN is no excuse either.
      gap: taken.length === 0 ? Number.POSITIVE_INFINITY : Math.max(Number.NEGATIVE_INFINITY, ...gaps),
    });
  }
  return found;
}
