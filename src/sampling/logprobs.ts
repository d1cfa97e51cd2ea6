/** Log-probabilities beside the tokens, in the model's own distribution: before bias, penalties, masks and temperature. */

/** One token of a sequence, with what the model thought of it and of its likeliest rivals. Plain data. */
export interface TokenLogprobs {
  readonly token: number;
  /** Natural logarithm of its probability; -Infinity if it has none. */
  readonly logprob: number;
  /** The likeliest tokens in this place, best first, the lowest id among equals. */
  readonly top: readonly (readonly [id: number, logprob: number])[];
}

/** Log-probabilities of `token` and of the `count` likeliest tokens. The same token has the same bits in both places. */
export function tokenLogprobs(logits: Float32Array, token: number, count: number): TokenLogprobs {
  let max = Number.NEGATIVE_INFINITY;
  for (const logit of logits) if (logit > max) max = logit;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - max);
  const logSum = max + Math.log(sum);
  const logprob = (id: number) => (logits[id] as number) - logSum;
  return { token, logprob: logprob(token), top: largestIds(logits, count).map((id) => [id, logprob(id)] as const) };
}

/** Ids of the `count` largest logits, largest first. `count` is small: an insertion into a sorted list is enough. */
function largestIds(logits: Float32Array, count: number): number[] {
  const ids: number[] = [];
  if (count === 0) return ids;
  let least = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id] as number;
    if (ids.length === count && !(logit > least)) continue;
    if (ids.length === count) ids.pop();
    let at = ids.length;
    while (at > 0 && (logits[ids[at - 1] as number] as number) < logit) at--;
    ids.splice(at, 0, id);
    least = logits[ids.at(-1) as number] as number;
  }
  return ids;
}
