/** The modules of a DeepSeek-V3 model under their names in the transformers library, as KTransformers' rules match them. */

export interface ModuleShape {
  readonly layers: number;
  readonly denseLayers: number;
  /** 0: a plain query projection. */
  readonly qRank: number;
  readonly experts: number;
  readonly sharedWidth: number;
}

export interface TreeModule {
  readonly name: string;
  /** The class it is of, by its last name. */
  readonly kind: ModuleKind;
  readonly children: () => readonly TreeModule[];
}

export type ModuleKind =
  | 'DeepseekV3ForCausalLM'
  | 'DeepseekV3Model'
  | 'DeepseekV3DecoderLayer'
  | 'DeepseekV3Attention'
  | 'DeepseekV3RotaryEmbedding'
  | 'DeepseekV3RMSNorm'
  | 'DeepseekV3MLP'
  | 'DeepseekV3MoE'
  | 'MoEGate'
  | 'Linear'
  | 'Embedding'
  | 'ModuleList'
  | 'SiLU';

const modelling = 'ktransformers.models.modeling_deepseek_v3.';

/** Dotted class names that a rule may match by, with what is an instance of each; null: everything. */
export const matchClasses: Readonly<Record<string, readonly ModuleKind[] | null>> = {
  'torch.nn.Module': null,
  'torch.nn.Linear': ['Linear'],
  'torch.nn.Embedding': ['Embedding'],
  'torch.nn.ModuleList': ['ModuleList'],
  [`${modelling}DeepseekV3ForCausalLM`]: ['DeepseekV3ForCausalLM'],
  [`${modelling}DeepseekV3Model`]: ['DeepseekV3Model'],
  [`${modelling}DeepseekV3DecoderLayer`]: ['DeepseekV3DecoderLayer'],
  [`${modelling}DeepseekV3Attention`]: ['DeepseekV3Attention'],
  [`${modelling}DeepseekV3RotaryEmbedding`]: ['DeepseekV3RotaryEmbedding'],
  [`${modelling}DeepseekV3YarnRotaryEmbedding`]: ['DeepseekV3RotaryEmbedding'],
  [`${modelling}DeepseekV3RMSNorm`]: ['DeepseekV3RMSNorm'],
  [`${modelling}DeepseekV3MLP`]: ['DeepseekV3MLP'],
  [`${modelling}DeepseekV3MoE`]: ['DeepseekV3MoE'],
  [`${modelling}MoEGate`]: ['MoEGate'],
};

function make(name: string, kind: ModuleKind, children: () => readonly TreeModule[] = () => []): TreeModule {
  return { name, kind, children };
}

/** The root of the tree; depth-first it has the order of the library. */
export function moduleTree(shape: ModuleShape): TreeModule {
  const layers = () => Array.from({ length: shape.layers }, (_, layer) => decoderLayer(shape, layer));
  const model = () => [
    make('model.embed_tokens', 'Embedding'),
    make('model.layers', 'ModuleList', layers),
    make('model.norm', 'DeepseekV3RMSNorm'),
  ];
  return make('', 'DeepseekV3ForCausalLM', () => [make('model', 'DeepseekV3Model', model), make('lm_head', 'Linear')]);
}

function decoderLayer(shape: ModuleShape, layer: number): TreeModule {
  const at = `model.layers.${layer}`;
  return make(at, 'DeepseekV3DecoderLayer', () => [
    make(`${at}.self_attn`, 'DeepseekV3Attention', () => attention(shape, `${at}.self_attn`)),
    layer < shape.denseLayers ? network(`${at}.mlp`) : mixture(shape, `${at}.mlp`),
    make(`${at}.input_layernorm`, 'DeepseekV3RMSNorm'),
    make(`${at}.post_attention_layernorm`, 'DeepseekV3RMSNorm'),
  ]);
}

function attention({ qRank }: ModuleShape, at: string): TreeModule[] {
  const linear = (name: string) => make(`${at}.${name}`, 'Linear');
  const norm = (name: string) => make(`${at}.${name}`, 'DeepseekV3RMSNorm');
  return [
    ...(qRank === 0 ? [linear('q_proj')] : [linear('q_a_proj'), norm('q_a_layernorm'), linear('q_b_proj')]),
    linear('kv_a_proj_with_mqa'),
    norm('kv_a_layernorm'),
    linear('kv_b_proj'),
    linear('o_proj'),
    make(`${at}.rotary_emb`, 'DeepseekV3RotaryEmbedding'),
  ];
}

function network(at: string): TreeModule {
  return make(at, 'DeepseekV3MLP', () => [
    ...['gate_proj', 'up_proj', 'down_proj'].map((name) => make(`${at}.${name}`, 'Linear')),
    make(`${at}.act_fn`, 'SiLU'),
  ]);
}

function mixture({ experts, sharedWidth }: ModuleShape, at: string): TreeModule {
  const each = () => Array.from({ length: experts }, (_, expert) => network(`${at}.experts.${expert}`));
  return make(at, 'DeepseekV3MoE', () => [
    make(`${at}.experts`, 'ModuleList', each),
    make(`${at}.gate`, 'MoEGate'),
    ...(sharedWidth > 0 ? [network(`${at}.shared_experts`)] : []),
  ]);
}
