/** What Ollama's clients read about a model. */
import { createHash } from 'node:crypto';
import type { ModelInspection } from '../../model/inspect.ts';

export interface DescribedModel {
  readonly id: string;
  /** Unix seconds. */
  readonly created: number;
  readonly inspection: ModelInspection;
  /** Tokens that a prompt and its answer may have here. */
  readonly contextTokens: number;
}

/** The model as it stands in lists. */
export function listed(model: DescribedModel) {
  const { id, created, inspection } = model;
  const size = inspection.files.reduce((total, { bytes }) => total + bytes, 0);
  const name = id.includes(':') ? id : `${id}:latest`;
  const digest = createHash('sha256')
    .update(JSON.stringify([id, created, size]))
    .digest('hex');
  return { name, model: name, modified_at: modified(model), size, digest, details: details(inspection) };
}

/** The same of a model that is loaded, as this one always is. */
export function running(model: DescribedModel) {
  const { name, model: id, size, digest, details } = listed(model);
  const never = '9999-12-31T23:59:59Z';
  return {
    name,
    model: id,
    size,
    digest,
    details,
    expires_at: never,
    size_vram: 0,
    context_length: model.contextTokens,
  };
}

/** Everything about the model; the context is this server's, which prompts must fit into. */
export function shown(model: DescribedModel, template: string, thinks: boolean) {
  const { inspection } = model;
  const { architecture } = inspection.config;
  return {
    modelfile: '',
    parameters: '',
    template,
    details: details(inspection),
    model_info: {
      ...inspection.metadata,
      'general.architecture': architecture,
      'general.parameter_count': inspection.parameters.total,
      [`${architecture}.context_length`]: model.contextTokens,
    },
    capabilities: ['completion', 'tools', ...(thinks ? ['thinking'] : [])],
    modified_at: modified(model),
  };
}

function modified({ created }: DescribedModel): string {
  return new Date(1000 * created).toISOString();
}

function details({ config, parameters, groups }: ModelInspection) {
  const bytes = new Map<string, number>();
  for (const [type, size] of groups.flatMap(({ types }) => Object.entries(types))) {
    bytes.set(type, (bytes.get(type) ?? 0) + size);
  }
  const [most] = [...bytes].sort(([, a], [, b]) => b - a);
  return {
    parent_model: '',
    format: 'gguf',
    family: config.architecture,
    families: [config.architecture],
    parameter_size: sizeName(parameters.total),
    // The type that most bytes are in.
    quantization_level: most?.[0] ?? 'unknown',
  };
}

/** "30.0M", "1.0T" */
function sizeName(count: number): string {
  const [unit, size] = count >= 1e12 ? ['T', 1e12] : count >= 1e9 ? ['B', 1e9] : ['M', 1e6];
  return `${(count / size).toFixed(1)}${unit}`;
}
