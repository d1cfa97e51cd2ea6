import type { AnswerMessage, BlockDelta, ContentBlock, MessageEvent } from './to-events.ts';

/** The answer, whole: what its stream adds up to. */
export async function toMessage(events: AsyncIterable<MessageEvent>): Promise<AnswerMessage> {
  let message: AnswerMessage | undefined;
  const content: ContentBlock[] = [];
  /** Of the tool use that is open. */
  let input = '';
  for await (const event of events) {
    switch (event.type) {
      case 'message_start':
        message = event.message;
        break;
      case 'content_block_start':
        content.push(event.content_block);
        input = '';
        break;
      case 'content_block_delta':
        if (event.delta.type === 'input_json_delta') input += event.delta.partial_json;
        else content.push(grown(content.pop() as ContentBlock, event.delta));
        break;
      case 'content_block_stop': {
        const block = content.pop() as ContentBlock;
        content.push(block.type === 'tool_use' ? { ...block, input: inputOf(input) } : block);
        break;
      }
      case 'message_delta':
        message = { ...(message as AnswerMessage), ...event.delta, usage: event.usage };
    }
  }
  // chat() begins with `started` or throws.
  return { ...(message as AnswerMessage), content };
}

function grown(block: ContentBlock, delta: BlockDelta): ContentBlock {
  if (block.type === 'text' && delta.type === 'text_delta') return { ...block, text: block.text + delta.text };
  if (block.type !== 'thinking') return block;
  if (delta.type === 'thinking_delta') return { ...block, thinking: block.thinking + delta.thinking };
  return delta.type === 'signature_delta' ? { ...block, signature: delta.signature } : block;
}

/** Empty where the answer was cut inside: an input is an object, and stop_reason says max_tokens. */
function inputOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}
