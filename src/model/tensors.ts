/** Which tensors the engine needs, under the engine's names for them, each checked against the shape the config implies. */
import { perigeeError } from '../errors.ts';
import { elementCount } from '../gguf/sizes.ts';
import type { GgmlTypeName, GgufModel, GgufTensor } from '../gguf/types.ts';
import type { ModelConfig } from './config.ts';

export type GlobalSlot = 'token_embd' | 'output_norm' | 'output';

type CommonSlot = 'attn_norm' | 'ffn_norm' | 'attn_kv_a' | 'attn_kv_a_norm' | 'attn_output';

export type LayerSlot =
  | CommonSlot
  | 'attn_q'
  | 'attn_q_a'
  | 'attn_q_a_norm'
  | 'attn_q_b'
  | 'attn_k_b'
  | 'attn_v_b'
  | 'attn_kv_b'
  | 'ffn_gate'
  | 'ffn_up'
  | 'ffn_down'
  | 'ffn_gate_inp'
  | 'exp_probs_b'
  | 'ffn_gate_exps'
  | 'ffn_up_exps'
  | 'ffn_down_exps'
  | 'ffn_gate_up_exps'
  | 'ffn_gate_shexp'
  | 'ffn_up_shexp'
  | 'ffn_down_shexp';

export type Slot = GlobalSlot | LayerSlot;

/** The tensors of one layer. Which optional ones are there follows from the config and the file's dialect. */
export type LayerTensors = Readonly<Record<CommonSlot, GgufTensor> & Partial<Record<LayerSlot, GgufTensor>>>;

export interface ModelTensors {
  readonly token_embd: GgufTensor;
  readonly output_norm: GgufTensor;
  /** Absent: the head shares token_embd. */
  readonly output?: GgufTensor;
  readonly layers: readonly LayerTensors[];
}

/** What names and shapes of tensors follow from. */
export type ModelShape = Pick<
  ModelConfig,
  | 'denseLayers'
  | 'hidden'
  | 'vocabulary'
  | 'heads'
  | 'qRank'
  | 'kvRank'
  | 'nopeDim'
  | 'ropeDim'
  | 'valueDim'
  | 'denseWidth'
  | 'experts'
  | 'expertWidth'
  | 'sharedWidth'
>;

export interface SlotSpec<Name extends Slot = Slot> {
  readonly slot: Name;
  /** The tensor's name in the file. */
  readonly name: string;
  readonly shape: readonly number[];
  /** Norms and biases, used as floats; everything else is a matrix for matmul. */
  readonly vector: boolean;
}

/** Where files of the same model differ. */
export interface Dialect {
  /** One attn_kv_b instead of the absorbed pair attn_k_b, attn_v_b. */
  readonly joinedKvB: boolean;
  /** ffn_gate_up_exps, gate rows first, instead of two tensors. */
  readonly fusedGateUp: boolean;
  readonly routerBias: boolean;
}

const floatTypes: readonly GgmlTypeName[] = ['F32', 'F16', 'BF16'];

function spec<Name extends Slot>(slot: Name, name: string, shape: readonly number[], vector = false): SlotSpec<Name> {
  return { slot, name, shape, vector };
}

/** Slots outside the layers, `output` among them. */
export function globalSpecs(config: ModelShape): SlotSpec<GlobalSlot>[] {
  return [
    spec('token_embd', 'token_embd.weight', [config.hidden, config.vocabulary]),
    spec('output_norm', 'output_norm.weight', [config.hidden], true),
    spec('output', 'output.weight', [config.hidden, config.vocabulary]),
  ];
}

/** The slots of one layer in the order of the forward pass, with file names and exact shapes. */
export function layerSpecs(config: ModelShape, layer: number, dialect: Dialect): SlotSpec<LayerSlot>[] {
  const at = (name: string) => `blk.${layer}.${name}`;
  const specs = [
    ...attentionSpecs(config, at, dialect),
    spec('ffn_norm', at('ffn_norm.weight'), [config.hidden], true),
  ];
  const { hidden, denseWidth, sharedWidth } = config;
  const feedForward = (suffix: '' | '_shexp', width: number) => [
    spec(`ffn_gate${suffix}`, at(`ffn_gate${suffix}.weight`), [hidden, width]),
    spec(`ffn_up${suffix}`, at(`ffn_up${suffix}.weight`), [hidden, width]),
    spec(`ffn_down${suffix}`, at(`ffn_down${suffix}.weight`), [width, hidden]),
  ];
  if (layer < config.denseLayers) return [...specs, ...feedForward('', denseWidth)];
  specs.push(...expertSpecs(config, at, dialect));
  return sharedWidth === 0 ? specs : [...specs, ...feedForward('_shexp', sharedWidth)];
}

function attentionSpecs(config: ModelShape, at: (name: string) => string, dialect: Dialect): SlotSpec<LayerSlot>[] {
  const { hidden, heads, qRank, kvRank, nopeDim, ropeDim, valueDim } = config;
  const queryRows = heads * (nopeDim + ropeDim);
  const specs: SlotSpec<LayerSlot>[] = [spec('attn_norm', at('attn_norm.weight'), [hidden], true)];
  if (qRank === 0) specs.push(spec('attn_q', at('attn_q.weight'), [hidden, queryRows]));
  else {
    specs.push(
      spec('attn_q_a', at('attn_q_a.weight'), [hidden, qRank]),
      spec('attn_q_a_norm', at('attn_q_a_norm.weight'), [qRank], true),
      spec('attn_q_b', at('attn_q_b.weight'), [qRank, queryRows]),
    );
  }
  specs.push(
    spec('attn_kv_a', at('attn_kv_a_mqa.weight'), [hidden, kvRank + ropeDim]),
    spec('attn_kv_a_norm', at('attn_kv_a_norm.weight'), [kvRank], true),
  );
  if (dialect.joinedKvB) specs.push(spec('attn_kv_b', at('attn_kv_b.weight'), [kvRank, heads * (nopeDim + valueDim)]));
  else {
    specs.push(
      spec('attn_k_b', at('attn_k_b.weight'), [nopeDim, kvRank, heads]),
      spec('attn_v_b', at('attn_v_b.weight'), [kvRank, valueDim, heads]),
    );
  }
  specs.push(spec('attn_output', at('attn_output.weight'), [heads * valueDim, hidden]));
  return specs;
}

function expertSpecs(config: ModelShape, at: (name: string) => string, dialect: Dialect): SlotSpec<LayerSlot>[] {
  const { hidden, experts, expertWidth } = config;
  const specs: SlotSpec<LayerSlot>[] = [spec('ffn_gate_inp', at('ffn_gate_inp.weight'), [hidden, experts])];
  if (dialect.routerBias) specs.push(spec('exp_probs_b', at('exp_probs_b.bias'), [experts], true));
  if (dialect.fusedGateUp) {
    specs.push(spec('ffn_gate_up_exps', at('ffn_gate_up_exps.weight'), [hidden, 2 * expertWidth, experts]));
  } else {
    specs.push(
      spec('ffn_gate_exps', at('ffn_gate_exps.weight'), [hidden, expertWidth, experts]),
      spec('ffn_up_exps', at('ffn_up_exps.weight'), [hidden, expertWidth, experts]),
    );
  }
  specs.push(spec('ffn_down_exps', at('ffn_down_exps.weight'), [expertWidth, hidden, experts]));
  return specs;
}

/** The file may say its layers differ, so each layer is asked. The absorbed pair wins where a file carries both forms. */
function layerDialect(gguf: GgufModel, layer: number): Dialect {
  const has = (name: string) => gguf.tensors.has(`blk.${layer}.${name}`);
  return {
    joinedKvB: has('attn_kv_b.weight') && !has('attn_k_b.weight'),
    fusedGateUp: has('ffn_gate_up_exps.weight'),
    routerBias: has('exp_probs_b.bias'),
  };
}

/** Whether the bytes lie as `shape` says: trailing dimensions of 1 and two-dimensional spellings of attn_k_b count as equal. */
function sameLayout(found: readonly number[], shape: readonly number[]): boolean {
  const trimmed = found.slice(0, found.findLastIndex((dimension) => dimension !== 1) + 1);
  const flattened = trimmed.length >= 2 && trimmed.length < shape.length && elementCount(found) === elementCount(shape);
  const shared = flattened ? trimmed.slice(0, -1) : trimmed;
  return (
    (flattened || trimmed.length === shape.length) && shared.every((dimension, index) => dimension === shape[index])
  );
}

/** The tensor for `wanted`, with the shape spelled as the engine expects it. */
function find(gguf: GgufModel, wanted: SlotSpec): GgufTensor {
  const tensor = gguf.tensors.get(wanted.name);
  const expected = `[${wanted.shape.join(', ')}]`;
  const fail = (found: string, what = expected) =>
    perigeeError('MODEL_BAD_TENSOR', { tensor: wanted.name, found, expected: what });
  if (!tensor) throw fail('missing');
  if (!sameLayout(tensor.shape, wanted.shape)) throw fail(`[${tensor.shape.join(', ')}]`);
  if (wanted.vector && !floatTypes.includes(tensor.type)) throw fail(`stored as ${tensor.type}`, floatTypes.join(', '));
  return { ...tensor, shape: wanted.shape };
}

/** A tensor that we would silently leave out changes what the model says; better to refuse. */
function refuseUnknown(gguf: GgufModel, used: ReadonlySet<string>, layers: number): void {
  for (const name of gguf.tensors.keys()) {
    const layer = /^blk\.(\d+)\./.exec(name)?.[1];
    const prediction = layer !== undefined && Number(layer) >= layers;
    if (used.has(name) || prediction || name.endsWith('.attn_kv_b.weight')) continue;
    throw perigeeError('MODEL_UNSUPPORTED', { what: `it has a tensor '${name}' that this architecture does not use` });
  }
}

/** Finds every tensor the engine needs and checks it. Blocks beyond `config.layers` (multi-token prediction) are ignored. */
export function modelTensors(gguf: GgufModel, config: ModelConfig): ModelTensors {
  const used = new Set<string>();
  const collect = (specs: readonly SlotSpec[]) => {
    return specs.map((wanted) => {
      used.add(wanted.name);
      return [wanted.slot, find(gguf, wanted)] as const;
    });
  };
  const tied = !gguf.tensors.has('output.weight');
  const globals = collect(globalSpecs(config).filter((wanted) => wanted.slot !== 'output' || !tied));
  const layers = Array.from({ length: config.layers }, (_, layer) => {
    return Object.fromEntries(collect(layerSpecs(config, layer, layerDialect(gguf, layer)))) as unknown as LayerTensors;
  });
  refuseUnknown(gguf, used, config.layers);
  return { ...(Object.fromEntries(globals) as Omit<ModelTensors, 'layers'>), layers };
}
