/** What `perigee inspect` shows of a model, without loading it. */
import { elementCount, formatBytes } from '../gguf/sizes.ts';
import type { GgmlTypeName, GgufModel, GgufValue } from '../gguf/types.ts';
import type { ModelConfig } from './config.ts';
import { cacheBytesPerToken, slotTensors, type WeightGroup, weightGroup, weightGroups } from './fit.ts';
import { modelTensors, type Slot } from './tensors.ts';

export interface ModelInspection {
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
  readonly ggufVersion: number;
  readonly config: ModelConfig;
  readonly tensorCount: number;
  readonly parameters: { readonly total: number; readonly active: number };
  readonly weights: { readonly bytes: number; readonly activeBytes: number; readonly bitsPerParameter: number };
  readonly groups: readonly {
    readonly group: WeightGroup;
    readonly bytes: number;
    readonly types: Readonly<Record<string, number>>;
  }[];
  readonly cacheBytesPerToken: number;
  readonly tokenizer: {
    readonly model: string;
    readonly pre: string;
    readonly tokens: number;
    readonly chatTemplate: boolean;
  };
  /** Every metadata value; long strings and arrays by their size. */
  readonly metadata: Readonly<Record<string, string | number | boolean>>;
}

/** The share of a tensor's parameters that one token uses: the chosen experts of all, or everything. */
function activeShare(slot: Slot, config: ModelConfig): number {
  return slot.endsWith('_exps') ? config.expertsUsed / config.experts : 1;
}

/** The share of its bytes that decoding one token reads: as above, but one row of an embedding that is not also the head. */
function readShare(slot: Slot, config: ModelConfig, tied: boolean): number {
  return slot === 'token_embd' && !tied ? 1 / config.vocabulary : activeShare(slot, config);
}

function summarize(value: GgufValue): string | number | boolean {
  if (Array.isArray(value)) return `array of ${value.length}`;
  if (typeof value === 'string') return value.length > 200 ? `text of ${value.length} characters` : value;
  return typeof value === 'number' || typeof value === 'boolean' ? value : `${value}`;
}

/** Everything about the model as plain data. */
export function inspectModel(gguf: GgufModel, config: ModelConfig): ModelInspection {
  const parameters = { total: 0, active: 0 };
  const weights = { bytes: 0, activeBytes: 0 };
  const types = new Map(weightGroups.map((group) => [group, new Map<GgmlTypeName, number>()]));
  let tensorCount = 0;
  const tensors = modelTensors(gguf, config);
  for (const [slot, tensor] of slotTensors(tensors)) {
    const elements = elementCount(tensor.shape);
    tensorCount += 1;
    parameters.total += elements;
    parameters.active += elements * activeShare(slot, config);
    weights.bytes += tensor.bytes;
    weights.activeBytes += tensor.bytes * readShare(slot, config, tensors.output === undefined);
    const group = types.get(weightGroup(slot));
    group?.set(tensor.type, (group.get(tensor.type) ?? 0) + tensor.bytes);
  }
  const sum = (bytes: Iterable<number>) => [...bytes].reduce((total, part) => total + part, 0);
  const groups = [...types].map(([group, byType]) => {
    return { group, bytes: sum(byType.values()), types: Object.fromEntries([...byType].sort((a, b) => b[1] - a[1])) };
  });
  const tokens = gguf.metadata.get('tokenizer.ggml.tokens');
  return {
    files: gguf.files,
    ggufVersion: gguf.version,
    config,
    tensorCount,
    parameters,
    weights: { ...weights, bitsPerParameter: (weights.bytes * 8) / parameters.total },
    groups,
    cacheBytesPerToken: cacheBytesPerToken(config),
    tokenizer: {
      model: `${gguf.metadata.get('tokenizer.ggml.model') ?? 'none'}`,
      pre: `${gguf.metadata.get('tokenizer.ggml.pre') ?? 'none'}`,
      tokens: Array.isArray(tokens) ? tokens.length : 0,
      chatTemplate: typeof gguf.metadata.get('tokenizer.chat_template') === 'string',
    },
    metadata: Object.fromEntries([...gguf.metadata].map(([key, value]) => [key, summarize(value)])),
  };
}

/** A count for people: 1.026 T, 32.9 B, 435 M. */
function formatCount(count: number): string {
  const [unit, size] = count >= 1e12 ? ['T', 1e12] : count >= 1e9 ? ['B', 1e9] : count >= 1e6 ? ['M', 1e6] : ['k', 1e3];
  const value = count / size;
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(3)} ${unit}`;
}

function describeExperts(config: ModelConfig): string {
  if (config.experts === 0) return 'none';
  const groups = config.expertGroups > 1 ? `, ${config.expertGroupsUsed} of ${config.expertGroups} groups` : '';
  const shared = config.sharedWidth > 0 ? `, shared ${config.sharedWidth} wide` : '';
  const weights = `${config.gating}${config.normalizeWeights ? ', normalized' : ''}, x ${Number(config.weightScale.toPrecision(6))}`;
  return `${config.expertsUsed} of ${config.experts}, ${config.expertWidth} wide${groups}${shared}; ${weights}`;
}

function describeYarn(config: ModelConfig): string {
  if (!config.yarn) return 'no YaRN';
  const { factor, originalContext, betaFast, betaSlow } = config.yarn;
  return `YaRN factor ${factor} over ${originalContext} tokens, betas ${betaFast} / ${betaSlow} (${config.yarnBetaSource})`;
}

/** The inspection for people. */
export function inspectText(gguf: GgufModel, config: ModelConfig): string {
  const model = inspectModel(gguf, config);
  const { hidden, layers, denseLayers, heads, qRank, kvRank, nopeDim, ropeDim, valueDim } = config;
  const query = qRank === 0 ? 'plain query' : `query rank ${qRank}`;
  const parts = model.files.length === 1 ? '' : ` in ${model.files.length} parts`;
  const rows: [string, string][] = [
    ['model', `${config.name} (${config.architecture}, GGUF version ${model.ggufVersion}${parts})`],
    [
      'parameters',
      `${formatCount(model.parameters.total)} total, ${formatCount(model.parameters.active)} active per token`,
    ],
    ['layers', `${layers}, ${denseLayers} dense (${config.denseWidth} wide); hidden ${hidden}`],
    ['attention', `${heads} heads of ${nopeDim} + ${ropeDim} / ${valueDim}; ${query}, latent ${kvRank}`],
    ['experts', describeExperts(config)],
    ['context', `${config.context} tokens; KV cache ${formatBytes(model.cacheBytesPerToken)} a token`],
    ['rope', `base ${config.ropeBase}; ${describeYarn(config)}`],
    [
      'tokenizer',
      `${model.tokenizer.model} / ${model.tokenizer.pre}, ${model.tokenizer.tokens} tokens, ${model.tokenizer.chatTemplate ? 'with' : 'without'} chat template`,
    ],
    [
      'weights',
      `${formatBytes(model.weights.bytes)}, ${model.weights.bitsPerParameter.toFixed(2)} bits a parameter; ${formatBytes(model.weights.activeBytes)} read per token`,
    ],
    ...model.groups.map(({ group, bytes, types }): [string, string] => {
      const byType = Object.entries(types).map(([type, size]) => `${type} ${formatBytes(size)}`);
      return [`  ${group}`, `${formatBytes(bytes)}: ${byType.join(', ')}`];
    }),
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, text]) => `${name.padEnd(width)}  ${text}`).join('\n');
}
