/** The engine's plain structs and enumerations, as C++ declares them, against what TypeScript writes and reads. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import type { ModelConfig } from '../../src/model/config.ts';
import { matrixSlots } from '../../src/model/plan.ts';
import {
  type EngineLimits,
  exchangeArrays,
  exchangeArraysAt,
  exchangeWords,
  stages,
  statuses,
  stepFields,
  vectorSlots,
  writeConfig,
} from '../../src/runtime/layout.ts';
import { tapNames } from '../../src/runtime/taps.ts';
import { jobBytes } from '../../wasm/rank-task.ts';

const header = (name: string) => readFileSync(fileURLToPath(new URL(`../../engine/${name}`, import.meta.url)), 'utf8');
const withoutComments = (text: string) => text.replaceAll(/\/\/.*|\/\*.*?\*\//g, '');

/** Field names of a struct in order; functions are left out. */
function fields(file: string, struct: string): string[] {
  const [, body = ''] = new RegExp(`struct ${struct} \\{(.*?)\\n\\};`, 's').exec(withoutComments(header(file))) ?? [];
  return body.split(';').flatMap((line) => {
    if (line.includes('(') || line.trim() === '' || line.trim() === '}') return [];
    const [, names = ''] = /^\s*(?:[\w:]+\s*\*?\s+\*?)(.+)$/s.exec(line) ?? [];
    return names.split(',').map((name) => name.trim());
  });
}

/** Names of an enumeration in order, without its Count. */
function names(file: string, enumeration: string): string[] {
  const [, body = ''] =
    new RegExp(`enum class ${enumeration} : \\w+ \\{(.*?)\\}`, 's').exec(withoutComments(header(file))) ?? [];
  return body
    .split(',')
    .map((name) => name.replace(/=.*/, '').trim())
    .filter((name) => name !== '' && name !== 'Count');
}

/** Every number different, so that two fields in the wrong order show. */
const values = {
  layers: 1,
  dense_layers: 2,
  hidden: 3,
  vocabulary: 4,
  heads: 5,
  q_rank: 6,
  kv_rank: 7,
  nope_dim: 8,
  rope_dim: 9,
  value_dim: 10,
  dense_width: 11,
  experts: 12,
  experts_used: 13,
  expert_width: 14,
  shared_width: 15,
  groups: 16,
  groups_used: 17,
  gating: 1,
  normalize_weights: 1,
  weight_scale: 18.5,
  rms_eps: 19.5,
  rope_base: 20.5,
  yarn: 1,
  yarn_factor: 21.5,
  yarn_original_context: 22.5,
  yarn_beta_fast: 23.5,
  yarn_beta_slow: 24.5,
  rope_magnitude: 25.5,
  attention_factor: 26.5,
  ranks: 27,
  batch_tokens: 28,
  batch_outputs: 29,
  batch_sequences: 30,
  pages: 31,
  page_tokens: 32,
  context: 33,
  exact: 1,
  spins: 34,
  taps: 1,
  experts_only: 1,
} as const;
const v = values;
const config: ModelConfig = {
  name: '',
  architecture: '',
  yarnBetaSource: '',
  context: 0,
  layers: v.layers,
  denseLayers: v.dense_layers,
  hidden: v.hidden,
  vocabulary: v.vocabulary,
  heads: v.heads,
  qRank: v.q_rank,
  kvRank: v.kv_rank,
  nopeDim: v.nope_dim,
  ropeDim: v.rope_dim,
  valueDim: v.value_dim,
  denseWidth: v.dense_width,
  experts: v.experts,
  expertsUsed: v.experts_used,
  expertWidth: v.expert_width,
  sharedWidth: v.shared_width,
  expertGroups: v.groups,
  expertGroupsUsed: v.groups_used,
  gating: 'sigmoid',
  normalizeWeights: true,
  weightScale: v.weight_scale,
  rmsEps: v.rms_eps,
  ropeBase: v.rope_base,
  yarn: {
    factor: v.yarn_factor,
    originalContext: v.yarn_original_context,
    betaFast: v.yarn_beta_fast,
    betaSlow: v.yarn_beta_slow,
    magnitude: v.rope_magnitude,
    attentionFactor: v.attention_factor,
  },
};
const limits: EngineLimits = {
  ranks: v.ranks,
  batchTokens: v.batch_tokens,
  batchOutputs: v.batch_outputs,
  batchSequences: v.batch_sequences,
  pages: v.pages,
  pageTokens: v.page_tokens,
  context: v.context,
  exact: true,
  spins: v.spins,
  taps: true,
  expertsOnly: true,
};

describe('structs written field by field', () => {
  it('have the order of engine/config.h', () => {
    const memory = new ArrayBuffer(1024);
    const at = writeConfig(memory, 64, config, limits);
    const order = [...fields('config.h', 'ModelConfig'), ...fields('config.h', 'Limits')];
    expect(order.length).toBe(Object.keys(values).length);
    expect(at).toEqual({
      config: 64,
      limits: 64 + 4 * fields('config.h', 'ModelConfig').length,
      end: 64 + 4 * order.length,
    });
    const view = new DataView(memory);
    order.forEach((name, index) => {
      const want = values[name as keyof typeof values];
      const float = !Number.isInteger(want);
      expect([name, float ? view.getFloat32(64 + 4 * index, true) : view.getUint32(64 + 4 * index, true)]).toEqual([
        name,
        want,
      ]);
    });
  });

  it('have the step block of engine/engine.h and the size of its jobs', () => {
    const camel = (name: string) => name.replaceAll(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    expect(fields('engine.h', 'StepBlock').map(camel)).toEqual(Object.keys(stepFields));
    expect(header('job.h')).toContain(`sizeof(Job) == ${jobBytes}`);
  });
});

describe('the exchange', () => {
  it('has the fields of engine/exchange.h, its words on lines of their own', () => {
    expect(fields('exchange.h', 'Exchange').slice(0, 7)).toEqual([...Object.keys(exchangeWords), ...exchangeArrays]);
    expect(header('exchange.h')).toContain('struct alignas(128) ExchangeWord');
    expect([...Object.values(exchangeWords), exchangeArraysAt]).toEqual([0, 128, 256, 384]);
  });
});

describe('enumerations', () => {
  const plain = (name: string) => name.replaceAll(/[^a-zA-Z]/g, '').toLowerCase();

  it('of stages and statuses agree', () => {
    expect(stages.map(plain)).toEqual(names('door.h', 'Stage').map(plain));
    expect(tapNames.map(plain)).toEqual(names('taps.h', 'Tap').map(plain));
    expect(statuses.length).toBe(names('engine.h', 'Status').length);
  });

  it('of slots agree', () => {
    const engine: Record<string, string> = {
      Router: 'ffn_gate_inp',
      ExpertGate: 'ffn_gate_exps',
      ExpertUp: 'ffn_up_exps',
      ExpertDown: 'ffn_down_exps',
      SharedGate: 'ffn_gate_shexp',
      SharedUp: 'ffn_up_shexp',
      SharedDown: 'ffn_down_shexp',
      QANorm: 'attn_q_a_norm',
      KVANorm: 'attn_kv_a_norm',
      RouterBias: 'exp_probs_b',
    };
    const same = (name: string) => plain(engine[name] ?? name);
    expect(matrixSlots.map(plain)).toEqual(names('config.h', 'Slot').map(same));
    expect(vectorSlots.map(plain)).toEqual(names('config.h', 'Vector').map(same));
  });
});
