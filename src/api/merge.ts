/** Several generations of one request as one stream of events. */

/** Starts one generation, which ends when the signal aborts. */
export type Source<Event> = (signal: AbortSignal) => AsyncIterable<Event>;

/** An event with the index of the generation it is of. */
export type Indexed<Event> = readonly [index: number, event: Event];

type Arrival<Event> =
  | { readonly index: number; readonly result: IteratorResult<Event> }
  | { readonly index: number; readonly error: unknown };

/**
 * Runs `sources` in their order, at most `limit` at a time, and yields their events as they come. When one fails, the signal
 * aborts, or the loop is left, all of them end.
 */
export async function* merge<Event>(
  sources: readonly Source<Event>[],
  limit: number,
  signal: AbortSignal,
): AsyncGenerator<Indexed<Event>, void, void> {
  const left = new AbortController();
  const both = AbortSignal.any([signal, left.signal]);
  const waiting = sources.map((source, index) => ({ source, index }));
  const iterators = new Map<number, AsyncIterator<Event>>();
  const arrivals: Arrival<Event>[] = [];
  let wake = () => {};
  const arrive = (arrival: Arrival<Event>) => {
    arrivals.push(arrival);
    wake();
  };
  const ask = (index: number) => {
    const next = (iterators.get(index) as AsyncIterator<Event>).next();
    next.then(
      (result) => arrive({ index, result }),
      (error: unknown) => arrive({ index, error }),
    );
  };
  const fill = () => {
    for (const { source, index } of waiting.splice(0, limit - iterators.size)) {
      iterators.set(index, source(both)[Symbol.asyncIterator]());
      ask(index);
    }
  };
  try {
    fill();
    while (iterators.size > 0) {
      const arrival = arrivals.shift();
      if (arrival === undefined) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      } else if ('error' in arrival) {
        throw arrival.error;
      } else if (arrival.result.done) {
        iterators.delete(arrival.index);
        fill();
      } else {
        yield [arrival.index, arrival.result.value];
        ask(arrival.index);
      }
    }
  } finally {
    left.abort();
    // Those that wait for the consumer hear no signal.
    for (const iterator of iterators.values()) iterator.return?.().catch(() => {});
  }
}
