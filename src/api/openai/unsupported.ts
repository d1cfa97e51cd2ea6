import { perigeeError } from '../../errors.ts';
import type { CompletionRequest } from './completion-schema.ts';
import type { ChatCompletionRequest } from './schema.ts';
import { brief } from './validate.ts';

interface Rule {
  readonly field: keyof ChatCompletionRequest | keyof CompletionRequest;
  /** The values under which the field asks for nothing that is missing here. */
  readonly fine: (value: unknown) => boolean;
  readonly advice: string;
}

const leaveOut = 'Leave it out.';
const only =
  (...values: unknown[]) =>
  (value: unknown) =>
    values.includes(value);
const empty = (value: unknown) => Array.isArray(value) && value.length === 0;
const never = () => false;

/** Fields that other servers act on and this one does not: ignoring them would change the answer without a word. */
const shared: readonly Rule[] = [
  {
    field: 'prompt_logprobs',
    fine: only(0, false),
    advice: "POST /v1/completions has them, with 'echo' and 'logprobs'.",
  },
  {
    field: 'response_format',
    fine: (value) => (value as { type: string }).type !== 'structural_tag',
    advice: 'Use a JSON schema, or tools.',
  },
  { field: 'structured_outputs', fine: never, advice: "Use 'response_format'." },
  { field: 'include_stop_str_in_output', fine: only(false), advice: leaveOut },
  { field: 'bad_words', fine: empty, advice: "Use 'logit_bias' on token ids." },
  { field: 'allowed_token_ids', fine: empty, advice: "Use 'logit_bias' on token ids." },
  { field: 'skip_special_tokens', fine: only(true), advice: leaveOut },
  { field: 'truncate_prompt_tokens', fine: never, advice: 'Shorten the prompt instead.' },
  { field: 'return_token_ids', fine: only(false), advice: leaveOut },
  { field: 'use_beam_search', fine: only(false), advice: leaveOut },
  { field: 'kv_transfer_params', fine: never, advice: leaveOut },
];

const ofTexts: readonly Rule[] = [
  { field: 'best_of', fine: only(1), advice: "Ask for several answers with 'n' and choose among them." },
  { field: 'suffix', fine: only(''), advice: 'This model continues texts; it does not fill gaps.' },
  { field: 'prompt_embeds', fine: never, advice: "Send text or token ids in 'prompt'." },
];

const ofChats: readonly Rule[] = [
  { field: 'functions', fine: empty, advice: "Declare functions in 'tools'." },
  { field: 'function_call', fine: only('none'), advice: "Use 'tools' and 'tool_choice'." },
  {
    field: 'modalities',
    fine: (value) => Array.isArray(value) && value.every((one) => one === 'text'),
    advice: 'This model writes text only.',
  },
  { field: 'audio', fine: never, advice: 'This model writes text only.' },
  { field: 'include_reasoning', fine: only(true), advice: "Ignore 'reasoning_content' in the answer instead." },
  { field: 'chat_template', fine: never, advice: "The model's own template is used." },
  { field: 'add_generation_prompt', fine: only(true), advice: leaveOut },
  { field: 'continue_final_message', fine: only(false), advice: leaveOut },
  { field: 'echo', fine: only(false), advice: leaveOut },
  { field: 'documents', fine: empty, advice: 'Put the documents into the messages.' },
];

/** Throws FIELD_UNSUPPORTED for the first field that asks for something the chat route does not do. */
export function refuseUnsupportedChat(request: ChatCompletionRequest): void {
  refuse(request, [...shared, ...ofChats]);
}

/** The same for the completions route. */
export function refuseUnsupportedCompletion(request: CompletionRequest): void {
  refuse(request, [...shared, ...ofTexts]);
}

function refuse(request: ChatCompletionRequest | CompletionRequest, rules: readonly Rule[]): void {
  for (const { field, fine, advice } of rules) {
    const value = (request as Partial<Record<Rule['field'], unknown>>)[field];
    if (value !== undefined && !fine(value)) {
      throw perigeeError('FIELD_UNSUPPORTED', { field, value: brief(value), advice }, { param: field });
    }
  }
  if (request.stream_options?.continuous_usage_stats === true) {
    const field = 'stream_options.continuous_usage_stats';
    throw perigeeError('FIELD_UNSUPPORTED', { field, value: 'true', advice: "Use 'include_usage'." }, { param: field });
  }
}
