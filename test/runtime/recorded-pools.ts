/** Every pool of workers that runtimes start, so that a test can kill a worker: the factory of vi.mock('piscina'). */
import type * as module from 'piscina';

export const pools: module.Piscina[] = [];

export async function recordPools(original: () => Promise<unknown>): Promise<typeof module> {
  const actual = (await original()) as typeof module;
  class Recorded extends actual.Piscina {
    constructor(...options: ConstructorParameters<typeof actual.Piscina>) {
      super(...options);
      pools.push(this);
    }
  }
  return { ...actual, Piscina: Recorded };
}
