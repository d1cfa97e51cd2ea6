import type { StreamDecoder, Tokenizer } from '../tokenizer/types.ts';
import { CallReader, type ParsedCall } from './tool-call.ts';
import type { ChatEvent, Tool } from './types.ts';

/** Why the model's output ended: it ended its turn, or it reached its limit. */
export type OutputEnd = 'stop' | 'length';

export interface ParserOptions {
  readonly tokenizer: Tokenizer;
  readonly tools: readonly Tool[];
  /** Tool calls the conversation holds already: the first call of this answer gets this number in its id. */
  readonly historyCalls: number;
  /** The prompt ended inside an open <think>. */
  readonly reasoningOpen?: boolean;
  /** False (tool_choice none): a section the model opens all the same is dropped. */
  readonly callsAllowed?: boolean;
}

/**
 * Reads the model's output token by token: reasoning, then text, then a section of tool calls. Markers are recognised by id
 * alone, so text that spells one stays text, and no marker leaks. A vocabulary without the markers has only text.
 */
export interface OutputParser {
  push(token: number): ChatEvent[];
  /** What was held back when the output ended, for `reason`. */
  end(reason: OutputEnd): ChatEvent[];
  /** tool_calls if at least one call was made, unless the output was cut inside one. */
  finishReason(reason: OutputEnd): OutputEnd | 'tool_calls';
  /** The output is in the answer's text: outside of reasoning and tool calls. */
  readonly inText: boolean;
  /** The calls announced so far. */
  readonly calls: readonly ParsedCall[];
  /** Tokens of the reasoning, its markers included. */
  readonly reasoningTokens: number;
}

const markerNames = {
  '<think>': 'think',
  '</think>': 'think-end',
  '<|tool_calls_section_begin|>': 'section',
  '<|tool_calls_section_end|>': 'section-end',
  '<|tool_call_begin|>': 'call',
  '<|tool_call_argument_begin|>': 'arguments',
  '<|tool_call_end|>': 'call-end',
} as const;
type Marker = (typeof markerNames)[keyof typeof markerNames];

/** between: in the section, outside any call. done: behind the section; the model has nothing more to say there. */
type State = 'reasoning' | 'text' | 'between' | 'id' | 'arguments' | 'done';

export function createOutputParser(options: ParserOptions): OutputParser {
  return new KimiParser(options);
}

class KimiParser implements OutputParser {
  readonly #options: ParserOptions;
  readonly #markers = new Map<number, Marker>();
  readonly #calls: CallReader[] = [];
  #state: State;
  #decoder: StreamDecoder;
  /** White space before the first text: dropped if tool calls follow, else text. */
  #leading: string | null = '';
  #reasoningTokens = 0;

  constructor(options: ParserOptions) {
    this.#options = options;
    this.#state = options.reasoningOpen ? 'reasoning' : 'text';
    this.#decoder = options.tokenizer.streamDecoder();
    const found = Object.entries(markerNames).map(
      ([name, marker]) => [options.tokenizer.specials.get(name), marker] as const,
    );
    const tellsCalls = found.every(([id, marker]) => id !== undefined || marker.startsWith('think'));
    for (const [id, marker] of found) {
      if (id !== undefined && (tellsCalls || marker.startsWith('think'))) this.#markers.set(id, marker);
    }
  }

  push(token: number): ChatEvent[] {
    const before = this.#state;
    const marker = this.#markers.get(token);
    let events: ChatEvent[] = [];
    if (marker !== undefined) events = this.#mark(marker);
    else if (!this.#options.tokenizer.isSpecial(token)) events = this.#route(this.#decoder.push(token));
    if (before === 'reasoning' || this.#state === 'reasoning') this.#reasoningTokens++;
    return events;
  }

  end(reason: OutputEnd): ChatEvent[] {
    const events = this.#flush();
    if (this.#state === 'arguments') events.push(...this.#calls.at(-1)!.endOfOutput(reason === 'length'));
    if (this.#state === 'id') this.#calls.pop();
    if (this.#state === 'text' && this.#leading) events.push({ type: 'text', text: this.#leading });
    this.#leading = null;
    return events;
  }

  finishReason(reason: OutputEnd): OutputEnd | 'tool_calls' {
    const { calls } = this;
    if (calls.length === 0 || (reason === 'length' && !calls.at(-1)!.complete)) return reason;
    return 'tool_calls';
  }

  get inText(): boolean {
    return this.#state === 'text';
  }

  get calls(): readonly ParsedCall[] {
    return this.#calls.flatMap((call) => call.result ?? []);
  }

  get reasoningTokens(): number {
    return this.#reasoningTokens;
  }

  #mark(marker: Marker): ChatEvent[] {
    const events = this.#flush();
    const inCall = this.#state === 'id' || this.#state === 'arguments';
    switch (marker) {
      case 'think':
        if (this.#state === 'text') this.#state = 'reasoning';
        break;
      case 'think-end':
        if (this.#state === 'reasoning') this.#state = 'text';
        break;
      case 'section':
        if (!inCall) this.#state = 'between';
        break;
      case 'call':
        events.push(...this.#closeCall());
        this.#startCall();
        break;
      case 'arguments':
        if (this.#state === 'id') {
          this.#state = 'arguments';
          events.push(...this.#calls.at(-1)!.startArguments());
        }
        break;
      case 'call-end':
        events.push(...this.#closeCall());
        break;
      case 'section-end':
        events.push(...this.#closeCall());
        if (this.#state === 'between') this.#state = 'done';
        break;
    }
    return events;
  }

  #startCall(): void {
    if (this.#options.callsAllowed === false) {
      this.#state = 'between';
      return;
    }
    const index = this.#calls.length;
    this.#calls.push(new CallReader(this.#options.tools, index, this.#options.historyCalls + index));
    this.#state = 'id';
  }

  /** Ends the call being read, if any; an id without arguments is a call with none. */
  #closeCall(): ChatEvent[] {
    if (this.#state !== 'id' && this.#state !== 'arguments') return [];
    const call = this.#calls.at(-1)!;
    const events = this.#state === 'id' ? call.startArguments() : [];
    this.#state = 'between';
    return [...events, ...call.close()];
  }

  /** The state changes: bytes that did not become a character belong to what came before. */
  #flush(): ChatEvent[] {
    const events = this.#route(this.#decoder.end());
    this.#decoder = this.#options.tokenizer.streamDecoder();
    return events;
  }

  #route(text: string): ChatEvent[] {
    if (text === '') return [];
    switch (this.#state) {
      case 'reasoning':
        return [{ type: 'reasoning', text }];
      case 'text':
        return this.#text(text);
      case 'id':
        this.#calls.at(-1)!.pushId(text);
        return [];
      case 'arguments':
        return this.#calls.at(-1)!.pushArguments(text);
      default:
        return [];
    }
  }

  #text(text: string): ChatEvent[] {
    if (this.#leading === null) return [{ type: 'text', text }];
    this.#leading += text;
    if (this.#leading.trim() === '') return [];
    const whole = this.#leading;
    this.#leading = null;
    return [{ type: 'text', text: whole }];
  }
}
