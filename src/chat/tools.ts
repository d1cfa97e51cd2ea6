import { type JsonTree, toTree } from './json.ts';
import type { Message, Tool, ToolCall } from './types.ts';

/** The declarations as the model was trained to read them: keys sorted, list order kept. */
export function declaredTools(tools: readonly Tool[]): JsonTree[] {
  return tools.map((tool) => toTree(tool.declaration, true));
}

/** How many tool calls the assistant has made so far: the number the next call gets in its id. */
export function countToolCalls(messages: readonly Message[]): number {
  return messages.reduce((count, message) => count + (message.toolCalls?.length ?? 0), 0);
}

/** The id the model was trained on: the n-th call of the whole conversation. */
export function toolCallId(name: string, n: number): string {
  return `functions.${name}:${n}`;
}

interface Renamed {
  readonly oldId: string;
  readonly call: ToolCall;
  answered: boolean;
}

/**
 * Gives the n-th tool call of the conversation the id functions.NAME:n, and tool messages the id and name of their call: found
 * by the old id (its first unanswered call), else by order. The template prints ids verbatim and the model
 * imitates what it sees; after foreign ids it writes malformed calls or none.
 */
export function normalizeToolCalls(messages: readonly Message[]): Message[] {
  const answeredIds = new Set(messages.flatMap((message) => message.toolCallId ?? []));
  const renamed: Renamed[] = [];
  return messages.map((message) => {
    if (message.toolCalls !== undefined && message.toolCalls.length > 0) {
      const toolCalls = message.toolCalls.map((call) => {
        const next = { ...call, id: toolCallId(call.name, renamed.length) };
        renamed.push({ oldId: call.id, call: next, answered: false });
        return next;
      });
      return { ...message, toolCalls };
    }
    if (message.role !== 'tool') return message;
    const match = findCall(renamed, message.toolCallId, answeredIds);
    if (match === undefined) return message;
    match.answered = true;
    return { ...message, toolCallId: match.call.id, name: message.name ?? match.call.name };
  });
}

function findCall(
  calls: readonly Renamed[],
  id: string | undefined,
  answeredIds: ReadonlySet<string>,
): Renamed | undefined {
  const open = calls.filter((one) => !one.answered);
  const sameId = (one: Renamed) => one.oldId === id;
  const found = open.find(sameId) ?? calls.findLast(sameId);
  if (found !== undefined) return found;
  return open.find((one) => !answeredIds.has(one.oldId)) ?? open[0];
}
