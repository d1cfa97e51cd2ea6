/** Distributions over the vocabulary, for scoring and for comparing two models. Natural logarithms, float64. */

/** log(softmax(logits)). */
export function logSoftmax(logits: ArrayLike<number>): Float64Array {
  const result = Float64Array.from(logits);
  const max = result.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const logSum = max + Math.log(result.reduce((sum, logit) => sum + Math.exp(logit - max), 0));
  return result.map((logit) => logit - logSum);
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
