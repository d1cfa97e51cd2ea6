/**
 * KTransformers' optimize rules: a YAML list of what to match in a model's modules and what to replace it with. Class and
 * operator names are words of a fixed vocabulary here, never imports; what is not in it is refused by name.
 */
import { parse } from 'yaml';
import { perigeeError } from '../errors.ts';
import { type ModuleKind, matchClasses } from './module-tree.ts';

export interface OptimizeRule {
  /** From 1, for messages. */
  readonly number: number;
  readonly matches: (name: string, kind: ModuleKind) => boolean;
  /** What the module becomes. */
  readonly part: ReplacedPart;
  readonly device: Device;
  /** The operator at work when an answer is generated; null: the class has none. */
  readonly operator: string | null;
  /** False: modules below are left as they are. */
  readonly recursive: boolean;
  /** Wishes that are understood and not followed. */
  readonly notices: readonly string[];
}

/** A GPU by number, or the CPU. */
export type Device = number | 'cpu';

export type ReplacedPart = 'default' | 'linear' | 'experts' | 'other';

const operators = 'ktransformers.operators.';

/** Every class that a rule may put in place. */
const replaceClasses: Readonly<Record<string, ReplacedPart>> = {
  default: 'default',
  [`${operators}linear.KTransformersLinear`]: 'linear',
  [`${operators}experts.KTransformersExperts`]: 'experts',
  [`${operators}experts.KTransformersExpertsV2`]: 'experts',
  [`${operators}experts.KDeepseekV3MoE`]: 'other',
  [`${operators}experts.KDeepseekV3MoEV2`]: 'other',
  [`${operators}gate.KMoEGate`]: 'other',
  [`${operators}gate.KMoEGateDeepSeekV3`]: 'other',
  [`${operators}attention.KDeepseekV2Attention`]: 'other',
  [`${operators}attention.flashinfer_attn`]: 'other',
  [`${operators}balance_serve_attention.flashinfer_attn`]: 'other',
  [`${operators}balance_serve_attention.deepseek_torch_attn`]: 'other',
  [`${operators}models.KDeepseekV2Model`]: 'other',
  [`${operators}layernorm.RMSNorm`]: 'other',
  [`${operators}mlp.kDeepseekV3MLP`]: 'other',
  [`${operators}RoPE.RotaryEmbedding`]: 'other',
  [`${operators}RoPE.RotaryEmbeddingV3`]: 'other',
  [`${operators}RoPE.RotaryEmbeddingV4`]: 'other',
  [`${operators}RoPE.YarnRotaryEmbedding`]: 'other',
  [`${operators}RoPE.YarnRotaryEmbeddingV3`]: 'other',
};

const requantizes = "Marlin's 4-bit copies are not made: weights keep the blocks of the model file";
const fileDecides = 'weights keep the type that the model file gives them';

/** Operators by class, with what is not followed of each. */
const operatorNotices: Readonly<Record<'linear' | 'experts', Readonly<Record<string, string | null>>>> = {
  linear: {
    KLinearMarlin: requantizes,
    VLinearMarlin: requantizes,
    KLinearTorch: null,
    KLinearCPUInfer: null,
    KLinearFP8: fileDecides,
    KLinearQ8: fileDecides,
    KLinearIPEXLLM: fileDecides,
    None: null,
  },
  experts: { KExpertsCPU: null, KExpertsTorch: null, KExpertsMarlin: requantizes, None: null },
};
const prefillNotice = 'prompts take the operator that is faster for their length, whatever prefill_op says';
const expertBackends: readonly string[] = ['llamafile', 'AMXBF16', 'AMXInt8', 'AMXInt4'];

const ruleKeys = ['match', 'replace', 'recursive'];
const matchKeys = ['name', 'class'];
const replaceKeys = ['class', 'kwargs', 'device'];
const kwargNames = [
  'generate_device',
  'prefill_device',
  'generate_op',
  'prefill_op',
  'out_device',
  'absorb_for_prefill',
  'per_layer_prefill_intput_threshold',
  'transfer_map',
  'num_bits',
  'group_size',
  'backend',
];

/** Reads rules from YAML; `file` is for messages. */
export function parseRules(file: string, text: string): OptimizeRule[] {
  let content: unknown;
  try {
    content = parse(text);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : `${cause}`;
    throw perigeeError('RULES_INVALID', { file, why }, { cause });
  }
  if (!Array.isArray(content)) throw perigeeError('RULES_INVALID', { file, why: 'they are not a YAML list' });
  return content.map((item, index) => {
    const refuse: Refuse = (why) => {
      throw perigeeError('RULES_INVALID', { file, why: `rule ${index + 1} ${why}` });
    };
    return parseRule(item, index + 1, refuse);
  });
}

type Refuse = (why: string) => never;
type Fields = Readonly<Record<string, unknown>>;

function parseRule(item: unknown, number: number, refuse: Refuse): OptimizeRule {
  const rule = fieldsOf(item, 'it', ruleKeys, refuse);
  const replace = fieldsOf(rule.replace, 'replace', replaceKeys, refuse);
  const kwargs = fieldsOf(replace.kwargs ?? {}, 'kwargs', kwargNames, refuse);
  const part = partOf(replace.class ?? 'default', refuse);
  if (rule.recursive !== undefined && typeof rule.recursive !== 'boolean')
    refuse('has a recursive that is neither True nor False');
  deviceOf(kwargs.prefill_device, 0, refuse);
  deviceOf(kwargs.out_device, 0, refuse);
  return {
    number,
    matches: parseMatch(fieldsOf(rule.match, 'match', matchKeys, refuse), refuse),
    part,
    device: deviceOf(kwargs.generate_device, part === 'experts' ? 'cpu' : 0, refuse),
    recursive: rule.recursive !== false,
    ...parseOperators(part, kwargs, refuse),
  };
}

function fieldsOf(value: unknown, what: string, known: readonly string[], refuse: Refuse): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return refuse(value === undefined ? `lacks ${what}` : `cannot be read: ${what} is no map of names to values`);
  }
  const stranger = Object.keys(value).find((key) => !known.includes(key));
  if (stranger !== undefined) refuse(`has '${stranger}' in ${what}, which is none of ${known.join(', ')}`);
  return value as Fields;
}

/** A name is searched for anywhere in the module's path; name and class must both match where both are given. */
function parseMatch({ name, class: dotted }: Fields, refuse: Refuse): OptimizeRule['matches'] {
  if (name === undefined && dotted === undefined) refuse('matches by neither name nor class');
  const pattern = name === undefined ? null : patternOf(name, refuse);
  if (dotted !== undefined && !(typeof dotted === 'string' && Object.hasOwn(matchClasses, dotted))) {
    refuse(`matches by class ${dotted}, which a DeepSeek-V3 model has not`);
  }
  const kinds = dotted === undefined ? null : (matchClasses[dotted as string] as readonly ModuleKind[] | null);
  return (path, kind) => (pattern?.test(path) ?? true) && (kinds?.includes(kind) ?? true);
}

function patternOf(name: unknown, refuse: Refuse): RegExp {
  if (typeof name !== 'string') return refuse(`has a name that is no text: ${JSON.stringify(name)}`);
  try {
    return new RegExp(name);
  } catch (error) {
    return refuse(`has a name that is no regular expression: ${error instanceof Error ? error.message : error}`);
  }
}

function partOf(dotted: unknown, refuse: Refuse): ReplacedPart {
  if (typeof dotted === 'string' && Object.hasOwn(replaceClasses, dotted))
    return replaceClasses[dotted] as ReplacedPart;
  return refuse(`puts class ${dotted} in place, which is not known here`);
}

function deviceOf(value: unknown, otherwise: Device, refuse: Refuse): Device {
  if (value === undefined) return otherwise;
  if (value === 'cpu') return 'cpu';
  const [, index] = /^cuda(?::(\d+))?$/.exec(`${value}`) ?? refuse(`names device ${value}; known are cpu and cuda:N`);
  return Number(index ?? 0);
}

function parseOperators(
  part: ReplacedPart,
  kwargs: Fields,
  refuse: Refuse,
): Pick<OptimizeRule, 'operator' | 'notices'> {
  if (part !== 'linear' && part !== 'experts') return { operator: null, notices: [] };
  const known = operatorNotices[part];
  const named = (key: string, otherwise: string) => {
    const name = kwargs[key] ?? otherwise;
    if (typeof name === 'string' && Object.hasOwn(known, name)) return name;
    return refuse(`has ${key} ${name}, which is none of ${Object.keys(known).join(', ')}`);
  };
  const operator = named('generate_op', part === 'experts' ? 'KExpertsCPU' : 'KLinearTorch');
  named('prefill_op', 'None');
  const { backend } = kwargs;
  if (backend !== undefined && !expertBackends.includes(`${backend}`)) {
    refuse(`has backend ${backend}, which is none of ${expertBackends.join(', ')}`);
  }
  const notices = [known[operator], kwargs.prefill_op === undefined ? null : prefillNotice];
  if (backend !== undefined && backend !== 'llamafile') notices.push(`${backend}: ${fileDecides}; --isa names kernels`);
  return { operator, notices: notices.filter((notice) => typeof notice === 'string') };
}
