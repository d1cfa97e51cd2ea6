/**
 * Published renderings of Kimi K2's templates, as text and token ids. Perigee's own renderer holds to R2 (the current Instruct
 * template) and R3 (Thinking). Not compared: R2 of "2 no system", whose copies of the template leave a line feed behind the
 * default system message, and "3b image", since this model reads text only.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { compileTemplate } from '../../src/chat/jinja.ts';
import { spacedJson, toTree } from '../../src/chat/json.ts';
import { renderKimiK2 } from '../../src/chat/kimi-k2.ts';
import { renderPrompt } from '../../src/chat/prompt.ts';
import { declaredTools } from '../../src/chat/tools.ts';
import type { Conversation, Message } from '../../src/chat/types.ts';
import { tokenizerFromFolder } from '../../src/tokenizer/folder.ts';
import { kimiFolder, kimiMissing, nanoTemplate, withTemplate } from './support.ts';

interface Golden {
  readonly name: string;
  readonly messages: readonly Record<string, unknown>[];
  readonly tools: readonly { function: { name: string } }[] | null;
  readonly R2_instruct_fixed: { readonly text: string; readonly ids: readonly number[] };
  readonly R3_thinking: { readonly text: string; readonly ids: readonly number[] };
}

const goldens: Golden[] = kimiMissing
  ? []
  : JSON.parse(readFileSync(join(kimiFolder, 'goldens.json'), 'utf8')).render.filter(
      (g: Golden) => g.name !== '3b image',
    );

function toMessage(golden: Record<string, unknown>): Message {
  const calls = golden.tool_calls as { id: string; function: { name: string; arguments: unknown } }[] | undefined;
  return {
    role: golden.role as string,
    content: golden.content as string | null,
    ...(golden.name === undefined ? {} : { name: golden.name as string }),
    ...(golden.reasoning_content === undefined ? {} : { reasoning: golden.reasoning_content as string }),
    ...(golden.tool_call_id === undefined ? {} : { toolCallId: golden.tool_call_id as string }),
    ...(calls === undefined
      ? {}
      : {
          toolCalls: calls.map(({ id, function: { name, arguments: given } }) => ({
            id,
            name,
            arguments: typeof given === 'string' ? given : spacedJson(toTree(given)),
          })),
        }),
  };
}

function toConversation(golden: Golden): Conversation {
  return {
    messages: golden.messages.map(toMessage),
    tools: (golden.tools ?? []).map((one) => ({ name: one.function.name, declaration: { ...one } })),
    templateOptions: {},
  };
}

describe.skipIf(kimiMissing)('published renderings (skipped where the Kimi vocabulary is absent)', async () => {
  if (kimiMissing) return;
  const tokenizer = await tokenizerFromFolder(kimiFolder);
  const instruct = withTemplate(tokenizer, nanoTemplate);
  const input = (golden: Golden) => {
    const { messages, tools } = toConversation(golden);
    return { messages, tools: declaredTools(tools), options: {} };
  };

  for (const golden of goldens) {
    it(`R3 text and ids of "${golden.name}"`, () => {
      expect(renderKimiK2(input(golden), true)).toBe(golden.R3_thinking.text);
      expect(tokenizer.encode(golden.R3_thinking.text, { specials: true })).toEqual(golden.R3_thinking.ids);
      // Normalising fills in the function's name, which the golden without one does not have.
      if (!golden.name.includes('no name')) {
        const prompt = renderPrompt(toConversation(golden), withTemplate(tokenizer, null));
        expect(prompt.templateSource).toBe('kimi-k2-thinking');
        expect(prompt.ids).toEqual(golden.R3_thinking.ids);
      }
    });

    if (golden.name === '2 no system') continue;
    it(`R2 text and ids of "${golden.name}", by the built-in renderer and by a checkpoint's template`, () => {
      expect(renderKimiK2(input(golden), false)).toBe(golden.R2_instruct_fixed.text);
      if (golden.name.includes('no name')) return;
      const prompt = renderPrompt(toConversation(golden), instruct);
      expect(prompt.templateSource).toBe('checkpoint');
      expect(prompt.text).toBe(golden.R2_instruct_fixed.text);
      expect(prompt.ids).toEqual(golden.R2_instruct_fixed.ids);
    });
  }

  it('are what the template says without normalising, too', () => {
    const golden = goldens.find((one) => one.name.includes('no name'))!;
    const { tools, messages } = input(golden);
    const raw = messages.map((m, i) => ({ ...golden.messages[i], content: m.content }));
    expect(
      compileTemplate(nanoTemplate)({ messages: toTree(raw), tools: [...tools], add_generation_prompt: true }),
    ).toBe(golden.R2_instruct_fixed.text);
  });
});
