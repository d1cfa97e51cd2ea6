import { toolCallId } from './tools.ts';
import type { ChatEvent, Tool } from './types.ts';

/** A call the model made, as far as it has been read. */
export interface ParsedCall {
  readonly id: string;
  readonly name: string;
  readonly arguments: string;
  /** Whether the client declared a tool of that name; models also call tools they only saw in history. */
  readonly declared: boolean;
  /** False when the output ended inside the arguments. */
  readonly complete: boolean;
}

/**
 * The tool an id names. Models write functions.NAME:IDX, and after foreign history also search:2, functions_x_1, functionsexec5,
 * call00003 or a bare 3. Declared names win over every other reading, since names may hold dots, dashes and colons. Null when
 * the id holds no name; the arguments may tell then (`inferTool`).
 */
export function resolveToolName(rawId: string, tools: readonly Tool[]): string | null {
  const id = rawId.trim();
  const unprefixed = id.startsWith('functions.') ? id.slice('functions.'.length) : id;
  const beforeColon = (text: string) => (text.includes(':') ? text.slice(0, text.lastIndexOf(':')) : text);
  const uncounted = beforeColon(unprefixed);
  const loose = id.replace(/^functions?[._:-]?/, '');
  const bare = loose.replace(/[._:-]?\d+$/, '');
  const readings = [
    uncounted,
    unprefixed,
    beforeColon(id),
    uncounted.slice(uncounted.lastIndexOf('.') + 1),
    loose,
    bare,
  ];
  const declared = readings.find((reading) => tools.some((tool) => tool.name === reading));
  if (declared !== undefined) return declared;
  if (!/^(functions)?\d*$/.test(uncounted) && /:\d+$/.test(unprefixed)) return uncounted;
  return bare === '' || /^(call|toolu|chatcmpl)(?![a-z])/i.test(bare) ? null : bare;
}

/** The one declared tool that these arguments fit: all its required parameters and no unknown ones. */
export function inferTool(argumentText: string, tools: readonly Tool[]): string | null {
  if (tools.length === 1) return tools[0]!.name;
  const value = parseObject(argumentText);
  if (value === null) return null;
  const keys = Object.keys(value);
  const fitting = tools.filter((tool) => {
    const { properties, required } = parametersOf(tool);
    return keys.every((key) => properties.includes(key)) && required.every((key) => (keys as unknown[]).includes(key));
  });
  return fitting.length === 1 ? fitting[0]!.name : null;
}

function parametersOf(tool: Tool): { properties: string[]; required: unknown[] } {
  const declared = tool.declaration.function as
    | { parameters?: { properties?: unknown; required?: unknown } }
    | undefined;
  const { properties, required } = declared?.parameters ?? {};
  return {
    properties: typeof properties === 'object' && properties !== null ? Object.keys(properties) : [],
    required: Array.isArray(required) ? required : [],
  };
}

/**
 * One call while its tokens arrive. Arguments that begin with `{` stream at once, less the white space at their end; others are
 * held until the end, since they may turn out to be an object inside a JSON string, or nothing at all.
 */
export class CallReader {
  readonly #tools: readonly Tool[];
  readonly #index: number;
  readonly #number: number;
  #rawId = '';
  #name: string | null = null;
  #announced = false;
  #held = '';
  #streaming = false;
  #sent = '';
  #complete = false;

  /** `index` counts the calls of this answer, `number` those of the conversation. */
  constructor(tools: readonly Tool[], index: number, number: number) {
    this.#tools = tools;
    this.#index = index;
    this.#number = number;
  }

  pushId(text: string): void {
    this.#rawId += text;
  }

  /** The id is whole; the call is announced unless only its arguments can tell which tool is meant. */
  startArguments(): ChatEvent[] {
    this.#name = resolveToolName(this.#rawId, this.#tools);
    return this.#name === null ? [] : this.#announce();
  }

  pushArguments(text: string): ChatEvent[] {
    this.#held = this.#held === '' && !this.#streaming ? text.trimStart() : this.#held + text;
    if (!this.#streaming) {
      if (!this.#announced || !this.#held.startsWith('{')) return [];
      this.#streaming = true;
    }
    const ready = this.#held.trimEnd();
    this.#held = this.#held.slice(ready.length);
    return this.#send(ready);
  }

  /** The call's end marker has come, or something that implies it. */
  close(): ChatEvent[] {
    this.#complete = true;
    if (this.#streaming) return [];
    const text = unwrapArguments(this.#held);
    this.#name ??= inferTool(text, this.#tools) ?? (this.#rawId.trim() || 'unknown');
    return [...(this.#announced ? [] : this.#announce()), ...this.#send(text)];
  }

  /** The output has ended inside the arguments. Whole JSON counts as closed; so do no arguments, unless cut by length. */
  endOfOutput(cut: boolean): ChatEvent[] {
    const text = this.#streaming ? this.#sent : this.#held.trim();
    if (text === '' ? !cut : isJson(text)) return this.close();
    if (this.#streaming) return [];
    this.#name ??= this.#rawId.trim() || 'unknown';
    return [...(this.#announced ? [] : this.#announce()), ...this.#send(text)];
  }

  get result(): ParsedCall | null {
    if (!this.#announced || this.#name === null) return null;
    const declared = this.#tools.some((tool) => tool.name === this.#name);
    const id = toolCallId(this.#name, this.#number);
    return { id, name: this.#name, arguments: this.#sent, declared, complete: this.#complete };
  }

  #announce(): ChatEvent[] {
    this.#announced = true;
    const name = this.#name!;
    return [{ type: 'tool-call', index: this.#index, id: toolCallId(name, this.#number), name }];
  }

  #send(text: string): ChatEvent[] {
    if (text === '') return [];
    this.#sent += text;
    return [{ type: 'tool-arguments', index: this.#index, text }];
  }
}

function unwrapArguments(held: string): string {
  const text = held.trim();
  if (text === '') return '{}';
  if (!text.startsWith('"')) return text;
  const inner = parseOr(text, null);
  return typeof inner === 'string' && parseObject(inner) !== null ? inner.trim() : text;
}

function parseObject(text: string): Record<string, unknown> | null {
  const value = parseOr(text, null);
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : null;
}

function isJson(text: string): boolean {
  return parseOr(text, undefined) !== undefined;
}

function parseOr<Fallback>(text: string, fallback: Fallback): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return fallback;
  }
}
