/** KTransformers' server flags: its users' command lines start this server too. What a flag meant there, and means here. */

/** Their flags that mean one of ours. */
const renamed: Readonly<Record<string, string>> = {
  cpu_infer: 'threads',
  cache_lens: 'cache-tokens',
  gguf_path: 'model',
};

const placed = 'GPUs are chosen by what fits, or by --optimize_config_path';
const sharedSteps = 'answers and prompts share every step, first come, first served';
const ownSampling = 'requests carry their own sampling options';

/** Their flags that change nothing here, and why; null where there is nothing to say but that. */
const withoutEffect: Readonly<Record<string, string | null>> = {
  device: placed,
  gpu_split: placed,
  tp: 'several GPUs share the layers, not the rows of one',
  use_cuda_graph: 'answers always run in graphs, prompts never',
  no_flash_attn: 'there is one attention for each kind of step',
  low_mem: 'GPU memory that is spare holds experts; the rest follows from --cache_lens',
  sched_strategy: sharedSteps,
  batch_size: sharedSteps,
  page_size: 'pages hold 64 tokens',
  memory_gpu_only: 'prefixes are always reused, from main memory',
  cpu_memory_size_GB: 'prefixes are always reused, within --cache_lens',
  kvc2_config_dir: 'prefixes are always reused, from main memory',
  utilization_percentage: null,
  backend_type: 'there is one scheduler',
  architectures: 'the model file names its architecture',
  q4_gguf_path: 'give one model file by --gguf_path',
  force_think: "the model's template decides",
  web: 'there is no web page',
  web_cross_domain: 'there is no web page',
  ssl_keyfile: 'put a TLS proxy in front',
  ssl_certfile: 'put a TLS proxy in front',
  log_dir: 'the log goes to stderr',
  log_file: 'the log goes to stderr',
  log_level: 'the log goes to stderr',
  backup_count: 'the log goes to stderr',
  top_k: ownSampling,
  top_a: ownSampling,
  skew: ownSampling,
  typical: ownSampling,
  smoothing_factor: ownSampling,
  dynamic_temperature: ownSampling,
  repetition_penalty: ownSampling,
  frequency_penalty: ownSampling,
  presence_penalty: ownSampling,
  max_new_tokens: 'requests carry their own max_tokens',
  json_mode: null,
  healing: null,
  ban_strings: null,
  length: null,
  rope_scale: 'the model file says it',
  rope_alpha: 'the model file says it',
  experts_per_token: 'the model file says it',
  load_q4: null,
  fast_safetensors: null,
  draft_model_dir: null,
  draft_model_path: null,
  draft_gguf_path: null,
  no_draft_scale: null,
  modes: null,
  mode: null,
  username: null,
  botname: null,
  system_prompt: 'requests carry their own',
  response_chunk: null,
  no_code_formatting: null,
  cache_8bit: null,
  cache_q4: null,
  ngram_decoding: null,
  print_timings: null,
  amnesia: null,
  db_type: null,
  db_host: null,
  db_port: null,
  db_name: null,
  db_pool_size: null,
  db_database: null,
  user_secret_key: null,
  user_algorithm: null,
  file_upload_dir: null,
  assistant_store_dir: null,
  prompt_file: null,
};

/** The two kinds of their flags that take no value. */
const switches = new Set(['use_cuda_graph', 'force_think']);

/**
 * Rewrites the arguments of `serve`: their flags with a meaning become ours, those without are dropped with one line of
 * notice each. Dashes and underscores in a flag's name are the same.
 */
export function takeKtransformersFlags(argv: readonly string[], notice: (line: string) => void): string[] {
  const kept: string[] = [];
  let checkpoint: string | undefined;
  for (let at = 0; at < argv.length; at++) {
    const argument = argv[at] as string;
    const [, flag, inline] = /^--([A-Za-z0-9][\w-]*)(?:=(.*))?$/s.exec(argument) ?? [];
    if (flag === undefined) {
      kept.push(argument);
      continue;
    }
    const name = flag.replaceAll('-', '_');
    const value = () => inline ?? (isValue(argv[at + 1]) ? argv[++at] : undefined);
    const base = name.replace(/^no_/, '');
    if (name === 'model_path' || name === 'model_dir') checkpoint = value();
    else if (name in withoutEffect || switches.has(base)) {
      if (!switches.has(base)) value();
      const why = withoutEffect[name] ?? withoutEffect[base];
      notice(`--${flag} has no effect here${why ? `: ${why}` : ''}`);
    } else kept.push(`--${renamed[name] ?? flag.replaceAll('_', '-')}${inline === undefined ? '' : `=${inline}`}`);
  }
  if (checkpoint === undefined) return kept;
  if (!kept.some((argument) => /^--model(=|$)/.test(argument))) return [...kept, '--model', checkpoint];
  notice('--model_path has no effect here: the GGUF file brings configuration and tokenizer');
  return kept;
}

function isValue(argument: string | undefined): argument is string {
  return argument !== undefined && !/^--[A-Za-z]/.test(argument);
}
