import type { GenerationTiming } from '../../scheduler/types.ts';
import type { ChatFinished, ChatStreamEvent } from '../complete.ts';
import type { TextEvent, TextFinished } from '../complete-text.ts';
import type { Indexed } from '../merge.ts';

/** Something the model said. */
interface Said {
  readonly text?: string;
  readonly thinking?: string;
  readonly calls?: ChatFinished['calls'];
}

interface AnswerMessage {
  readonly role: 'assistant';
  readonly content: string;
  readonly thinking?: string;
  readonly tool_calls?: readonly { readonly function: { readonly name: string; readonly arguments: unknown } }[];
}

/** Where the answer's words are: in a message for /api/chat, beside the rest for /api/generate. */
type Words = { readonly message: AnswerMessage } | { readonly response: string; readonly thinking?: string };

/** Nanoseconds, and tokens. */
interface Measures {
  readonly total_duration: number;
  readonly load_duration: number;
  readonly prompt_eval_count: number;
  readonly prompt_eval_duration: number;
  readonly eval_count: number;
  readonly eval_duration: number;
}

export type Line = Words & {
  readonly model: string;
  readonly created_at: string;
  readonly done: boolean;
  readonly done_reason?: 'stop' | 'length' | 'load';
} & Partial<Measures>;

export type Shape = 'chat' | 'generate';

/** One answer as the lines of a stream: its pieces, then one that is done, with the measures. Calls come whole. */
export async function* toLines(
  events: AsyncIterable<Indexed<ChatStreamEvent | TextEvent>>,
  model: string,
  shape: Shape,
): AsyncGenerator<Line, void, void> {
  const piece = (said: Said): Line => ({ ...header(model), ...words(said, shape), done: false });
  for await (const [, event] of events) {
    if (event.type === 'text') yield piece({ text: event.text });
    else if (event.type === 'reasoning') yield piece({ thinking: event.text });
    else if (event.type === 'finished') {
      if ('calls' in event && event.calls.length > 0) yield piece({ calls: event.calls });
      // A continued text says its last piece together with its end.
      const last = words('text' in event ? { text: event.text } : {}, shape);
      const reason = event.reason === 'length' ? 'length' : 'stop';
      yield { ...header(model), ...last, done: true, done_reason: reason, ...measures(event) };
    }
  }
}

/** The answer to a request for nothing but the model, which is loaded. */
export function loadedLine(model: string, shape: Shape): Line {
  return { ...header(model), ...words({}, shape), done: true, done_reason: 'load' };
}

/** The answer, whole: the last line, with the words of all. */
export async function toWhole(lines: AsyncIterable<Line>, shape: Shape): Promise<Line> {
  const all: Line[] = [];
  for await (const line of lines) all.push(line);
  const joined = (part: (line: Line) => string | undefined) => all.map((line) => part(line) ?? '').join('');
  const calls = all.flatMap((line) => ('message' in line ? (line.message.tool_calls ?? []) : []));
  const text = joined((line) => ('message' in line ? line.message.content : line.response));
  const thinking = joined((line) => ('message' in line ? line.message.thinking : line.thinking));
  const thought = thinking === '' ? {} : { thinking };
  const whole: Words =
    shape === 'generate'
      ? { response: text, ...thought }
      : { message: { role: 'assistant', content: text, ...thought, ...(calls.length > 0 && { tool_calls: calls }) } };
  return { ...(all.at(-1) as Line), ...whole };
}

function header(model: string) {
  return { model, created_at: new Date().toISOString() };
}

function words({ text = '', thinking, calls = [] }: Said, shape: Shape): Words {
  const thought = thinking === undefined ? {} : { thinking };
  if (shape === 'generate') return { response: text, ...thought };
  const made = calls.map((call) => ({ function: { name: call.name, arguments: objectOf(call.arguments) } }));
  return {
    message: { role: 'assistant', content: text, ...thought, ...(made.length > 0 && { tool_calls: made }) },
  };
}

/** Empty where the answer was cut inside of the arguments, as done_reason says. */
function objectOf(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return {};
  }
}

function measures({ timing, promptTokens, completionTokens }: ChatFinished | TextFinished): Measures {
  const { queueMilliseconds, promptMilliseconds, decodeMilliseconds }: GenerationTiming = timing;
  const nanoseconds = (milliseconds: number) => Math.round(1e6 * milliseconds);
  return {
    total_duration: nanoseconds(queueMilliseconds + promptMilliseconds + decodeMilliseconds),
    // What a request waits for before it begins: there the model's loading, here the queue.
    load_duration: nanoseconds(queueMilliseconds),
    prompt_eval_count: promptTokens,
    prompt_eval_duration: nanoseconds(promptMilliseconds),
    eval_count: completionTokens,
    eval_duration: nanoseconds(decodeMilliseconds),
  };
}
