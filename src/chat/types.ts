/** A conversation as the model's template sees it: the common ground of the OpenAI and Anthropic APIs. */
export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON text, verbatim. */
  readonly arguments: string;
}

export interface Message {
  /** system, user, assistant, tool; other roles are rendered like system. */
  readonly role: string;
  readonly content: string | null;
  readonly name?: string;
  readonly reasoning?: string;
  readonly toolCalls?: readonly ToolCall[];
  readonly toolCallId?: string;
}

/** A tool as declared by the client, kept as the JSON value it sent (`{"type":"function","function":{...}}`). */
export interface Tool {
  readonly name: string;
  readonly declaration: Readonly<Record<string, unknown>>;
}

export interface Conversation {
  readonly messages: readonly Message[];
  readonly tools: readonly Tool[];
  /** Extra variables for the template (chat_template_kwargs), e.g. thinking. */
  readonly templateOptions: Readonly<Record<string, unknown>>;
}

/** What the model's output says, piece by piece, as it arrives. */
export type ChatEvent =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'reasoning'; readonly text: string }
  | { readonly type: 'tool-call'; readonly index: number; readonly id: string; readonly name: string }
  | { readonly type: 'tool-arguments'; readonly index: number; readonly text: string };
