/** Distributions over the vocabulary, for scoring and for comparing two models. Natural logarithms, float64. */

/** log(softmax(logits)). */
export function logSoftmax(logits: ArrayLike<number>): Float64Array {
  const max = Float64Array.from(logits).reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const shifted = Float64Array.from(logits, (logit) => logit - max);
  const logSum = Math.log(shifted.reduce((sum, logit) => sum + Math.exp(logit), 0));
  return shifted.map((logit) => logit - logSum);
}

/** The Kullback-Leibler divergence of softmax(qLogits) from softmax(pLogits), in nats: how much is lost by q. */
export function klDivergence(pLogits: ArrayLike<number>, qLogits: ArrayLike<number>): number {
  const p = logSoftmax(pLogits);
  const q = logSoftmax(qLogits);
  return p.reduce(
    (sum, logP, id) => (logP === Number.NEGATIVE_INFINITY ? sum : sum + Math.exp(logP) * (logP - q[id]!)),
    0,
  );
}
