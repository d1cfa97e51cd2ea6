import { it } from 'vitest';
import { loadRuntime } from '../../src/runtime/load.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { describeRuntime } from './runtime.contract.ts';

const support = nativeSupport();

if (support.available) {
  describeRuntime({
    name: 'native',
    isas: support.isas,
    load: ({ gguf, config }, { threads, isa, exact = false, sequences = 1 }) =>
      loadRuntime({ gguf, config, backend: 'native', isa, threads, exact, sequences }),
  });
} else {
  it.skip(`native: ${support.why}`, () => {});
}
