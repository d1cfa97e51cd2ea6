/** What inspect says of Kimi K2 and of a small file. */
import { expect, it } from 'vitest';
import { modelConfig } from '../../src/model/gguf.ts';
import { inspectModel, inspectText } from '../../src/model/inspect.ts';
import { syntheticModel } from '../../src/model/synthetic.ts';
import { kimiK2, modelOf, withTensors } from './known-models.ts';
import { microModel } from './micro.ts';

it('counts 1.026 T parameters of Kimi K2, 32.9 B of them active', () => {
  const config = modelConfig(modelOf(kimiK2));
  const model = inspectModel(withTensors(modelOf(kimiK2), config), config);
  expect(model.tensorCount).toBe(1096);
  expect(model.parameters.total / 1e12).toBeCloseTo(1.0264, 4);
  expect(model.parameters.active / 1e9).toBeCloseTo(32.86, 2);
  expect(inspectText(withTensors(modelOf(kimiK2), config), config)).toContain('1.026 T total, 32.9 B active per token');
});

it('counts the bytes that one token of bench-1b reads: 271.4 MB', () => {
  const model = syntheticModel({ shape: 'bench-1b', mix: 'q4_k_m' });
  const { weights, parameters } = inspectModel(model, modelConfig(model));
  expect(parameters.total / 1e6).toBeCloseTo(2054, 0);
  expect(weights.bytes / 1e6).toBeCloseTo(1243, 0);
  expect(weights.activeBytes / 1e6).toBeCloseTo(271.4, 1);
});

it('shows betas with their source, types by group, and metadata without its bulk', () => {
  const gguf = microModel({ 'tokenizer.chat_template': 'x'.repeat(1000), 'big.number': 2n ** 63n });
  const config = modelConfig(gguf);
  const text = inspectText(gguf, config);
  expect(text).toContain('betas 32 / 1 (llama.cpp default)');
  expect(text).toMatch(/routed experts +.*F32/);
  const { metadata, tokenizer } = inspectModel(gguf, config);
  expect(metadata).toMatchObject({
    'tokenizer.ggml.tokens': 'array of 12',
    'tokenizer.chat_template': 'text of 1000 characters',
    'big.number': '9223372036854775808',
  });
  expect(tokenizer).toEqual({ model: 'none', pre: 'none', tokens: 12, chatTemplate: true });
  expect(() => JSON.stringify(inspectModel(gguf, config))).not.toThrow();
});
